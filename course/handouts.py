"""Makes notebooks for students from the lessons: the same cells, without solutions; and a quiz sheet without answers.

    python course/handouts.py [--out course/handouts]

A solution is a `<details>` element with the summary `Solution` or `A solution`. Directives of nbdev and marks of slides
go, too, and links to pages that are no handouts lead back to `nbs/`.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from quiz import QUIZ, quiz_page

ROOT = Path(__file__).parent.parent
FOLDERS = ("1_isd", "2_relatives")  # their notebooks have different names, so that one folder holds all
SOLUTION = re.compile(r"<details>\s*<summary>(?:A )?[Ss]olutions?</summary>.*?</details>\n*", re.S)
EXPORTS = re.compile(r" \(Cells with `#\| export`[^)]*\)")  # handouts have no such lines


def sources() -> dict[str, Path]:
    "The notebooks that are handed out, by name."
    return {path.name: path for folder in FOLDERS for path in sorted((ROOT / "nbs" / folder).glob("*.ipynb"))}


def redirected(text: str, page: Path, handed_out: set[str]) -> str:
    "Links of a page as they must be in the folder of handouts, two levels below the root."
    def link(match: re.Match) -> str:
        path, anchor = (page.parent / match[1]).resolve(), match[2] or ""
        handout = path.parent.name in FOLDERS and path.name in handed_out
        return f"]({path.name if handout else Path('../..') / path.relative_to(ROOT)}{anchor})"
    return re.sub(r"\]\((?!#|[a-z]+:)([^)\s#]+)(#[^)\s]*)?\)", link, text)


def without_solutions(notebook: dict[str, Any], page: Path, handed_out: set[str]) -> dict[str, Any]:
    "A page as students get it."
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if "#| default_exp" in source:
            continue
        if cell["cell_type"] == "markdown":
            source = redirected(EXPORTS.sub("", SOLUTION.sub("", source)), page, handed_out).strip()
        else:
            source = re.sub(r"^\s*#\|.*\n?", "", source, flags=re.M)
        tags = [tag for tag in cell["metadata"].get("tags", []) if not tag.startswith("slide-")]
        lines, metadata = source.splitlines(keepends=True), {"tags": tags} if tags else {}
        cells += [cell | {"source": lines, "metadata": metadata}] if lines else []
    return notebook | {"cells": cells}


def write_handouts(out: Path) -> int:  # how many notebooks
    "All handouts and the quiz sheet, in an own folder that is made anew."
    pages = sources()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.ipynb"):
        old.unlink()
    for name, page in pages.items():
        notebook = without_solutions(json.loads(page.read_text()), page, set(pages))
        (out / name).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    (out / "quiz.md").write_text(quiz_page(QUIZ.read_text(), answers=False))
    return len(pages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "course" / "handouts")
    out = parser.parse_args().out.resolve()
    print(f"{write_handouts(out)} notebooks without solutions and a quiz sheet are in {out}")


if __name__ == "__main__":
    main()
