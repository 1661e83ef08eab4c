"""What lecturers get: slides from marked cells, a quiz with reasons, plans that fit the slides, handouts that run."""
import json
import re
import sys
from pathlib import Path

import pytest
from test_exercises import quiet as quiet  # a fixture
from test_exercises import read_page, run
from test_lessons import LESSONS, links_of, prose_of

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "course"))
import handouts  # noqa: E402
import slides  # noqa: E402
from quiz import QUIZ, quiz_page, read_quiz  # noqa: E402

DECK = (ROOT / "course" / "lecture.md").read_text()
READ, CELLS = list(slides.read_deck(DECK)), slides.marked_cells()
QUESTIONS = [(lesson, q) for lesson, questions in read_quiz(QUIZ.read_text()).items() for q in questions]
TEXTS = [ROOT / "course" / f"{name}.md" for name in ("README", "plans", "quiz", "project", "lecture")]


def test_the_deck_fills_a_lecture() -> None:
    assert 25 <= len(READ) <= 35 and 80 <= sum(s.minutes for s in READ) <= 90
    assert all(s.notes for s in READ), "every slide has notes"


def test_every_marked_cell_is_on_a_slide() -> None:
    used = set(re.findall(r"^\{(?:figure|printed|code|formula): ([\w-]+)\}$", DECK, re.M))
    assert used == CELLS.keys()


def test_the_page_needs_no_network() -> None:
    page = slides.build_page(DECK)
    page = page.replace(slides.mathjax().replace("</script", "<\\/script"), "")
    sources = re.findall(r"""(?:src|href)=["']([^"']{0,40})|url\(([^)]{0,40})|@import (\S+)""", page)
    assert sources and all("".join(source).startswith(("data:image/png", "#")) for source in sources)
    assert page.count("<img") == len(re.findall(r"^\{figure: ", DECK, re.M)) and page.count("<section") == len(READ)


def test_tables_are_read_from_results(monkeypatch: pytest.MonkeyPatch) -> None:
    slide = next(s for s in READ if "{table: digits}" in s.body)
    monkeypatch.setitem(slides.readme.BLOCKS, "digits", lambda results: f"| a |\n| --- |\n| {results.name} 0.123 |")
    assert "results 0.123" in slides.rendered(slide, CELLS)
    words = re.sub(r"<svg.*?</svg>", "", "".join(s.body for s in READ), flags=re.S)
    assert not re.findall(r"\b0\.\d{3}\b|\d\.\dx", words), "measured numbers come from cells and results"


def test_a_slide_shows_what_can_be_read() -> None:
    loop = slides.essentials(slides.source_of(CELLS["loop"]))
    compile(loop, "loop", "exec")
    assert len(loop.splitlines()) <= 15 and not re.search(r"yield|schedule|\bg\b", loop)
    words = ("soft_label_loss(", ".backward()", "optimizer.step()", "teacher.update(", "queue.enqueue(")
    assert [loop.index(word) for word in words] == sorted(loop.index(word) for word in words)
    rows = [line for line in slides.as_table("methods-digits").splitlines() if "<tr>" in line or "</tr>" in line]
    assert rows.count("<tr>") == 9 and "<strong>ISD</strong>" in slides.as_table("methods-digits")


def test_numbers_in_notes_and_on_pages_are_those_of_results() -> None:
    parts = json.loads((ROOT / "nbs/3_claims/06_parts.ipynb").read_text())["cells"]
    printed = "".join("".join(o.get("text", [])) for c in parts for o in c.get("outputs", []))
    assert "187,000 images, knn20 : soft minus one-hot +0.003 (-0.010 to +0.015)" in printed
    assert "187,000 images, linear: soft minus one-hot +0.015 (+0.000 to +0.031)" in printed
    assert DECK.count("3_claims/06_parts") == 3 and "soft minus one-hot" not in DECK  # the page has the numbers
    pages = json.loads((ROOT / "results/bench/pages.json").read_text())["pages"]["index"]
    assert f"live part took {pages['live_seconds']:.0f} seconds, the whole page {pages['seconds']:.0f}," in DECK
    lesson = " ".join(prose_of(LESSONS[3]).split())
    assert "1.5 points more in features of soft labels than of one-hot ones (0.0 to 3.1)" in lesson
    untrained = [json.loads(p.read_text())["knn20_untrained"] for p in (ROOT / "results").glob("digits-[0-9]*.json")]
    assert round(100 * (max(untrained) - min(untrained))) == 5
    assert "untrained network varies by five points" in DECK


def test_formulas_below_each_other_on_a_page_share_a_line_on_a_slide() -> None:
    assert slides.source_of(CELLS["loss"]).count(r"\\[8pt]") == 2  # a phone shows each in full
    formula = slides.as_formula(CELLS["loss"])
    assert formula.count("gathered") == 2 and formula.count(r"\\[12pt]") == 1 and formula.count(r"\qquad") == 1


def test_an_unknown_mark_is_refused() -> None:
    with pytest.raises(SystemExit, match="slide-nowhere"):
        slides.rendered(slides.Slide("x", 1, "{figure: nowhere}", ""), CELLS)


def test_the_plan_of_a_lecture_fits_the_slides() -> None:
    text = (ROOT / "course" / "plans.md").read_text().split("## One afternoon")[0]
    rows = re.findall(r"^\| (\d+) to (\d+) \| (\d+)(?: to (\d+))? \|", text, re.M)
    ends = [0.0]
    for slide in READ:
        ends.append(ends[-1] + slide.minutes)
    following = [1, *(int(last) + 1 for *_, last in rows[:-1])]
    assert [int(first) for *_, first, _ in rows] == following and int(rows[-1][2]) == len(READ), "no slide is left out"
    for start, end, first, last in rows:
        assert (int(start), int(end)) == (ends[int(first) - 1], ends[int(last or first)]), f"slides {first} to {last}"


def test_the_quiz_has_questions_for_every_lesson() -> None:
    titles = [re.search(r"^# (.+)$", prose_of(path), re.M)[1] for path in LESSONS]
    assert list(read_quiz(QUIZ.read_text())) == titles
    assert all(len(questions) >= 4 for questions in read_quiz(QUIZ.read_text()).values())


@pytest.mark.parametrize(("lesson", "question"), QUESTIONS, ids=lambda x: x.split(":")[0] if isinstance(x, str) else "")
def test_a_question_has_one_right_answer_and_reasons(lesson: str, question: object) -> None:
    assert question.text.endswith("?") and len(question.options) == 4
    assert sum(option.right for option in question.options) == 1
    assert len({option.text for option in question.options}) == 4
    for option in question.options:
        assert option.why.endswith(".") and not re.search(r"[.?!] [A-Z]", option.why), f"one sentence: {option.why}"
        assert 4 <= len(option.why.split()) <= 30, option.why


def test_form_does_not_give_the_answer_away() -> None:
    answers = [question.answer for _, question in QUESTIONS]
    longest = [max(q.options, key=lambda o: len(o.text)).right for _, q in QUESTIONS]
    assert all(len(answers) / 8 < answers.count(letter) < len(answers) / 2 for letter in "ABCD")
    assert sum(longest) < len(longest) / 3, "the longest option is right too often"


def test_answers_are_folded_or_left_out() -> None:
    folded, sheet = quiz_page(QUIZ.read_text()), quiz_page(QUIZ.read_text(), answers=False)
    open_part = re.sub(r"<details>.*?</details>", "", folded, flags=re.S)
    assert folded.count("<details>") == len(QUESTIONS)
    for _, question in QUESTIONS:
        assert all(option.why in folded and option.why not in open_part + sheet for option in question.options)
        assert all(option.text in sheet for option in question.options)
    assert "** is right." not in open_part + sheet and "[x]" not in folded + sheet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("handouts")
    handouts.write_handouts(out)
    return out


@pytest.mark.parametrize("name", handouts.sources())
def test_a_handout_is_its_page_without_solutions(name: str, folder: Path) -> None:
    page, handout = handouts.sources()[name], folder / name
    text = prose_of(handout)
    assert "olution</summary>" not in text and prose_of(page).count("<summary>Hint") == text.count("<summary>Hint")
    assert "#| export" not in text
    for exercise in read_page(page).exercises:
        assert exercise.solution not in text
    code = [[re.sub(r"^\s*#\|.*\n?", "", c, flags=re.M) for c in code_cells(p)] for p in (page, handout)]
    assert [c for c in code[0] if c.strip()] == code[1]
    places = (ROOT / "course" / "handouts", folder)
    assert not [link for link in links_of(handout) if not any((place / link).resolve().exists() for place in places)]


def test_handouts_replace_no_work_of_others(tmp_path: Path) -> None:
    out = tmp_path / "handouts"
    handouts.write_handouts(out)
    own, lesson, record = out / "my_exam.ipynb", out / "3_queue.ipynb", out / handouts.WRITTEN
    own.write_text("{}\n")
    old = dict.fromkeys(("gone.ipynb", "kept.ipynb", "quiz.md"), handouts.sum_of("old\n"))
    record.write_text(json.dumps(json.loads(record.read_text()) | old))  # as after another version of the lessons
    for name, text in (("gone.ipynb", "old\n"), ("kept.ipynb", "edited\n"), ("quiz.md", "old\n")):
        (out / name).write_text(text)
    handouts.write_handouts(out)
    assert own.exists() and not (out / "gone.ipynb").exists() and (out / "kept.ipynb").exists()
    assert (out / "quiz.md").read_text() != "old\n"
    lesson.write_text(lesson.read_text() + " ")
    edited, quiz = lesson.read_text(), (out / "quiz.md").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match=r"^3_queue\.ipynb in .*--out$"):
        handouts.write_handouts(out)
    assert lesson.read_text() == edited and (out / "quiz.md").stat().st_mtime_ns == quiz


def test_lessons_are_never_replaced_by_handouts(tmp_path: Path) -> None:
    (tmp_path / "1_views.ipynb").write_text((ROOT / "nbs" / "1_isd" / "1_views.ipynb").read_text())
    with pytest.raises(FileExistsError, match=r"1_views\.ipynb"):
        handouts.write_handouts(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert "handouts" not in (ROOT / "Makefile").read_text().partition("\nclean:")[2]  # students write there


def code_cells(path: Path) -> list[str]:
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.mark.usefixtures("quiet")
def test_a_handout_runs_and_its_checks_turn_right(folder: Path) -> None:
    handed_out, solved = read_page(folder / "3_queue.ipynb"), read_page(ROOT / "nbs" / "1_isd" / "3_queue.ipynb")
    namespace = {"__name__": "handout"}
    run(handed_out.before, namespace)
    assert len(handed_out.exercises) == len(solved.exercises) == 2
    for exercise, original in zip(handed_out.exercises, solved.exercises):
        assert not exercise.solution and original.solution
        assert run([exercise.cell, *exercise.checks], namespace).startswith("Not yet")
        assert run([original.solution, *exercise.checks], namespace).endswith("Right\n")


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.stem)
def test_links_of_the_course_lead_somewhere(path: Path) -> None:
    assert not [link for link in links_of(path) if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.stem)
def test_english_of_the_course(path: Path) -> None:
    found = re.findall(r"\b(?:whom|nobody|somebody|anybody|\w+ times as (?:slow|fast))\b", path.read_text(), re.I)
    assert not found
