"""Makes notebooks for students from the lessons: the same cells, without solutions; and a quiz sheet without answers.

    python course/handouts.py [--out course/handouts]

A solution is a `<details>` element with the summary `Solution` or `A solution`. Directives of nbdev and marks of slides
go, too, and links to pages that are no handouts lead back to `nbs/`. A file that was changed since it
was written, or that this script has not written, is never replaced.
"""

import argparse
import json
import re
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from quiz import QUIZ, quiz_page

ROOT = Path(__file__).parent.parent
FOLDERS = ("1_isd", "2_relatives")  # their notebooks have different names, so that one folder holds all
SOLUTION = re.compile(r"<details>\s*<summary>(?:A )?[Ss]olutions?</summary>.*?</details>\n*", re.S)
WRITTEN = ".written.json"  # in the folder of handouts: the sum of each file as it was written
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


def sum_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def changed_files(out: Path, expected: dict[str, set[str]]) -> list[str]:  # names and the sums that they may have
    "The names in a folder that hold something else."
    present = [name for name in expected if (out / name).exists()]
    return [name for name in present if sum_of((out / name).read_text(errors="replace")) not in expected[name]]


def write_handouts(out: Path) -> int:  # how many notebooks
    "All handouts and the quiz sheet; FileExistsError where that would replace work of others."
    pages, record, texts = sources(), out / WRITTEN, {"quiz.md": quiz_page(QUIZ.read_text(), answers=False)}
    for name, page in pages.items():
        notebook = without_solutions(json.loads(page.read_text()), page, set(pages))
        texts[name] = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    written = json.loads(record.read_text()) if record.exists() else {}
    if changed := changed_files(out, {name: {sum_of(text), written.get(name, "")} for name, text in texts.items()}):
        raise FileExistsError(f"{', '.join(changed)} in {out}: not as `make handouts` wrote it, so nothing is written; "
                              "move it to another folder, or write to another one with --out")
    out.mkdir(parents=True, exist_ok=True)
    gone = written.keys() - texts.keys()  # pages that are no more; where they were changed, they stay
    for name in gone - set(changed_files(out, {name: {written[name]} for name in gone})):
        (out / name).unlink(missing_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text)
    record.write_text(json.dumps({name: sum_of(text) for name, text in texts.items()}, indent=1) + "\n")
    return len(pages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "course" / "handouts")
    out = parser.parse_args().out.resolve()
    try:
        print(f"{write_handouts(out)} notebooks without solutions and a quiz sheet are in {out}")
    except FileExistsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
