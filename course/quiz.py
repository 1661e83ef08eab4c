"""Reads the quiz, and writes it as a page with folded answers or as a sheet without them.

In quiz.md a question begins with `**1.**`, its options are a list of tasks (`- [x]` is right), and `*Why:*` stands
between an option and its explanation.
"""

import re
from dataclasses import dataclass
from pathlib import Path

QUIZ = Path(__file__).parent / "quiz.md"
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Option:
    "One of the answers that a question offers."
    text: str
    right: bool
    why: str


@dataclass(frozen=True)
class Question:
    "A question of a lesson."
    text: str
    options: tuple[Option, ...]

    @property
    def answer(self) -> str:
        "The letter of the right option."
        return LETTERS[[option.right for option in self.options].index(True)]


def read_quiz(text: str) -> dict[str, list[Question]]:  # by the title of the lesson
    "The questions of every lesson."
    quiz: dict[str, list[Question]] = {}
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        title, _, body = part.partition("\n")
        quiz[title] = [read_question(piece) for piece in re.split(r"^\*\*\d+\.\*\* ", body, flags=re.M)[1:]]
    return quiz


def read_question(text: str) -> Question:
    "A question with its options."
    head, *options = re.split(r"^- \[(?=[ x]\] )", text, flags=re.M)
    found = []
    for option in options:
        answer, separator, why = option[3:].partition(" *Why:* ")
        if not separator:
            raise SystemExit(f"an option of the quiz has no `*Why:*`: {option.strip()[:80]!r}")
        found.append(Option(" ".join(answer.split()), option[0] == "x", " ".join(why.split())))
    return Question(" ".join(head.split()), tuple(found))


def folded_answer(question: Question) -> list[str]:
    "The right letter and a sentence on every option, to unfold."
    lines = ["<details><summary>Answer</summary>", "", f"**{question.answer}** is right.", ""]
    lines += [f"* {letter}: {option.why}" for letter, option in zip(LETTERS, question.options)]
    return [*lines, "", "</details>", ""]


def quiz_page(text: str, answers: bool = True) -> str:
    "The quiz with lettered options; answers are folded, or left out."
    introduction = re.sub(r" `python course/handouts\.py`.*", "", text.partition("\n## ")[0]) if answers else "# Quiz\n"
    lines = [introduction.strip(), ""]
    for title, questions in read_quiz(text).items():
        lines += [f"## {title}", ""]
        for number, question in enumerate(questions, 1):
            lines += [f"**{number}.** {question.text}", ""]
            lines += [f"* **{letter}.** {option.text}" for letter, option in zip(LETTERS, question.options)]
            lines += ["", *(folded_answer(question) if answers else [])]
    return "\n".join(lines)
