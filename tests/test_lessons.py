"""Lessons read alike: one order of sections, short pages, imports from earlier lessons, links that lead somewhere."""
import ast
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from isd_nb.recipe import recipes

ROOT = Path(__file__).parent.parent
LESSONS = sorted((ROOT / "nbs/1_isd").glob("*.ipynb"), key=lambda p: int(p.stem.split("_")[0]))
RELATIVES = sorted((ROOT / "nbs/2_relatives").glob("*.ipynb"))
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)]

# What is not enforced yet, by lesson; this list only shrinks.
NOT_YET: dict[str, set[str]] = {}

SECTIONS = {  # in this order; each is a pattern for its heading
    "the question": r"The question",
    "the equation": r"The equations?",
    "the smallest version": r"The smallest version|By hand|.* plain PyTorch",
    "tests": r"Tests\b.*",
    "break it": r"Break it\b.*",
    "paper, authors' code, this book": r"(The )?[Pp]aper, (the )?authors' code.*",
    "summary": r"Summary",
    "exercises": r"Exercises",
    "references": r"References",
}
ANYWHERE = {"data", "errors", "sources", "explore", "kernels"}  # what every lesson may import
EARLY = {"evaluation": {"knn_accuracy", "linear_accuracy"}}  # built in lesson 8, used before
BELOW = {"method": 6, "protocols": 7, "embedding": 8}  # pages of their own, for lessons from these on
MAX_WORDS, MAX_CELLS, MEDIAN_LINES, MAX_LINES = 900, 25, 4, 25


def cells_of(path: Path, kind: str) -> list[dict[str, Any]]:
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def prose_of(path: Path) -> str:
    "The markdown of a page; of README.md, its text."
    return path.read_text() if path.suffix == ".md" else "\n\n".join(map(source, cells_of(path, "markdown")))


def code_of(path: Path) -> list[str]:
    "The code cells but the one that installs the package, without directives and blank lines."
    texts = [source(c) for c in cells_of(path, "code") if "install" not in c["metadata"].get("tags", [])]
    lines = [[line for line in text.splitlines() if line.strip() and not line.startswith("#|")] for text in texts]
    return ["\n".join(kept) for kept in lines if kept]


def module_of(path: Path) -> str | None:
    found = re.search(r"^#\| *default_exp (\S+)", "\n".join(source(c) for c in cells_of(path, "code")), re.M)
    return found and found[1]


def enforced(*rules: str) -> list[Any]:
    "A case for every lesson and rule that is enforced for it."
    return [pytest.param(path, id=f"{path.stem}-{rules[0]}") for path in LESSONS
            if not NOT_YET.get(path.stem, set()) & set(rules)]


@pytest.mark.parametrize("path", enforced("box"))
def test_a_lesson_begins_with_its_box(path: Path) -> None:
    first = source(cells_of(path, "markdown")[0])
    assert re.match(r"# Lesson \d: .+\n\n> .+", first), "title `# Lesson N: ...`, then one sentence after `> `"
    rows = ("You will be able to", "You need to know", "Minutes", "Papers")
    missing = [row for row in rows if f"**{row}**" not in first]
    assert not missing, f"the box has no row {missing}"
    assert "](http" in first, "papers are linked"


@pytest.mark.parametrize("path", enforced("sections"))
def test_sections_come_in_one_order(path: Path) -> None:
    headings = re.findall(r"^## (.+)$", prose_of(path), re.M)
    places = {name: next((i for i, h in enumerate(headings) if re.fullmatch(pattern, h)), None)
              for name, pattern in SECTIONS.items()}
    missing = [name for name, place in places.items() if place is None]
    assert not missing, f"no section for {missing}: {headings}"
    assert list(places.values()) == sorted(places.values()), f"the order should be {list(SECTIONS)}, it is {headings}"


@pytest.mark.parametrize("path", enforced("length"))
def test_a_lesson_is_short(path: Path) -> None:
    words = len(re.sub(r"<details>.*?</details>", "", prose_of(path), flags=re.S).split())  # with tables and references
    cells = [source(c) for c in cells_of(path, "code")]  # all of them, whatever they are for
    lines = [len(cell.splitlines()) for cell in cells]  # with directives and blank lines
    code = [len(cell.splitlines()) for cell in code_of(path)]
    assert words <= MAX_WORDS, f"{words} words, {MAX_WORDS} allowed"
    assert len(cells) <= MAX_CELLS, f"{len(cells)} cells of code, {MAX_CELLS} allowed"
    assert statistics.median(lines) <= MEDIAN_LINES, f"the median is {statistics.median(lines)} lines: {sorted(lines)}"
    assert max(code) <= MAX_LINES, f"a cell of {max(code)} lines of code, {MAX_LINES} allowed"


@pytest.mark.parametrize("path", [*enforced("exercises"), *(pytest.param(path, id=path.stem) for path in RELATIVES)])
def test_exercises_are_complete(path: Path) -> None:
    tagged = [c for c in cells_of(path, "code") if "exercise" in c["metadata"].get("tags", [])]
    part = prose_of(path).partition("\n## Exercises")[2]
    announced = re.findall(r"^\*\*(?:Exercise \d+|\d+\. [^*]+)\*\* \(\d+ minutes, (?:easy|medium|hard)\)", part, re.M)
    minutes = sum(int(n) for line in announced for n in re.findall(r"\((\d+) minutes", line))
    box = source(cells_of(path, "markdown")[0])
    assert re.search(rf"\*\*Minutes\*\* \| \d+, and {minutes} for the exercises \|", box), f"{minutes} for them"
    assert len(tagged) >= 2, "two exercises or more, each in a tagged cell"
    assert len(announced) == len(tagged), f"`**Exercise 1** (5 minutes, easy)` before each: {announced}"
    for summary in ("Hint", "Solution"):
        unfolding = part.count(f"<details><summary>{summary}</summary>")
        assert unfolding == len(tagged), f"a {summary.lower()} unfolds for each exercise"


@pytest.mark.parametrize("path", enforced("control"))
def test_one_thing_can_be_turned_by_hand(path: Path) -> None:
    outputs = [o.get("data", {}) for c in cells_of(path, "code") for o in c["outputs"]]
    views = [data for data in outputs if "application/vnd.jupyter.widget-view+json" in data]
    assert views, "a control, made by isd_nb.explore.interactive.interactive_figure"
    assert all("image/png" in data for data in views), "a control leaves a static figure behind"
    assert "widgets" not in json.loads(path.read_text())["metadata"], "widget state is not stored"


def stored_names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


@pytest.mark.parametrize("path", enforced("control"))
def test_later_cells_keep_what_a_control_draws_with(path: Path) -> None:
    "A figure `fig` that a later cell replaces would be shown in the control's place."
    functions, used = {}, set()
    for text in code_of(path):
        body = ast.parse(re.sub(r"^[%!].*$", "", text, flags=re.M)).body
        plain = [node for node in body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        assert not used & set().union(*map(stored_names, plain)), text
        functions |= {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
        for name in re.findall(r"^interactive_figure\((\w+)", text, re.M):
            drawing = functions[name]
            names = {node.id for node in ast.walk(drawing) if isinstance(node, ast.Name)}
            used |= names - stored_names(drawing) - {argument.arg for argument in drawing.args.args}


@pytest.mark.parametrize("path", enforced("next"))
def test_a_lesson_leads_to_the_next(path: Path) -> None:
    number = LESSONS.index(path)
    last = prose_of(path).rstrip().splitlines()[-1]
    following = LESSONS[number + 1].name if number + 1 < len(LESSONS) else ""
    assert last.startswith("Next: [") and following in last, f"the last line links to {following or 'more'}: {last}"


@pytest.mark.parametrize("path", enforced("references"))
def test_other_chapters_are_links(path: Path) -> None:
    text = re.sub(r"\[[^\]]*\]\([^)]*\)", "", prose_of(path).partition("\n")[2])
    loose = re.findall(r"(?:[Cc]hapter|[Ll]esson|machine_room/)\s?\d+", text)
    assert not loose, f"these should be links: {loose}"


@pytest.mark.parametrize("path", enforced("imports"))
def test_a_lesson_imports_from_earlier_ones(path: Path) -> None:
    number = int(path.stem.split("_")[0])
    earlier = {module_of(p) for p in LESSONS if p.stem.split("_")[0].isdigit() and int(p.stem.split("_")[0]) < number}
    allowed = ANYWHERE | earlier | {module for module, first in BELOW.items() if number >= first}
    for node in ast.walk(ast.parse("\n".join(re.sub(r"^[%!].*$", "", cell, flags=re.M) for cell in code_of(path)))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "isd_nb":
            room, names = node.module.split(".")[1], {alias.name for alias in node.names}
            assert room in allowed or names <= EARLY.get(room, set()), f"{sorted(names)} from {node.module}"


def test_lesson_3_counts_with_the_numbers_of_a_recipe() -> None:
    code = "\n".join(code_of(LESSONS[2]))
    named, size, batch = re.search(r'"CIFAR-10, recipe (\w+)", ([\d_]+), (\d+), 50_000', code).groups()
    assert (int(size), int(batch)) == (recipes[named].queue_size, recipes[named].batch_size)


def links_of(path: Path) -> set[str]:
    "The relative links of a page; code and formulas are left out."
    text = re.sub(r"^(```|~~~).*?^\1", "", prose_of(path), flags=re.S | re.M)
    text = re.sub(r"\$\$.*?\$\$|`[^`\n]+`|\$[^$\n]+\$", "", text, flags=re.S)
    links = re.findall(r"\]\(([^)\s]+?)(?:#[^)\s]*)?\)", text)
    return {link for link in links if not re.match(r"[a-z]+:", link) and not link.startswith("#")}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    broken = sorted(link for link in links_of(path) if not (path.parent / link).exists())
    assert not broken, f"no such file: {broken}"
