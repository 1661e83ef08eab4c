"""Exercises of the book: unfilled, a check says what is missing; with the solution of the page, it prints Right."""
import io
import json
import re
import symtable
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

from isd_nb.sources.digits import digits

ROOT = Path(__file__).parent.parent
PAGES = [p for folder in ("1_isd", "2_relatives") for p in sorted((ROOT / "nbs" / folder).glob("*.ipynb"))]
WRONG = {  # by page and exercise: answers that a student may well give
    ("1_views", 2): """def apart(a, b):
    return ((a.top - b.top).abs() >= a.height) | ((a.left - b.left).abs() >= a.width)""",
    ("2_encoders", 1): "def mirror_blind(encode, images): return encode((images + images.flip(3)) / 2)",
    ("2_encoders", 2): "def weights_of_head(i, h, o): return i * h + 2 * h + h * o + i",
    ("4_soft_labels", 1): "def temperature_for(gap, ratio): return gap / 5",
    ("5_teacher", 1): """def updated(teacher, student, momentum):
    return [momentum * s + (1 - momentum) * t for t, s in zip(teacher, student)]""",
    ("6_isd", 2): """def contrastive_loss(q, k, a, temperature):
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ a.T], 1)
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))""",
    ("7_collapse", 1): """import math
def rounds_until(a, b, s, t): return round(math.log(b / a) / math.log(s / t))""",
    ("7_collapse", 2): "def flat_vectors(g): return 5 * torch.randn(200, 2, generator=g)",
    ("8_evaluation", 1): """def best_k(features, labels, groups, ks):  # copies of held-out images stay in the rest
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[stratified_fraction(labels, 0.2)] = True
    return max(ks, key=lambda k: knn_accuracy(features[~held], labels[~held], features[held], labels[held], k))""",
    ("00_family_tree", 1): "def a_tenth_of_moco(): return Knobs(one_hot=0.1, own_key=True)",
    ("06_co2", 1): """def two_directions(queries, keys, anchors, temperature):
    there = soft_label_loss(queries, keys, anchors, temperature, temperature)
    return (there + soft_label_loss(keys, queries, anchors, temperature, temperature)) / 2""",
    ("06_co2", 2): """def jensen_shannon(queries, keys, anchors, temperature):
    p, r = ((x @ anchors.T / temperature).softmax(1) for x in (queries, keys))
    mixed, *own = (torch.special.entr(x).sum(1) for x in ((p + r) / 2, p, r))
    return (mixed - sum(own) / 2).sum()""",
    ("08_compress", 2): """def distil_classes(student_logits, teacher_logits, temperature):
    log_p = (student_logits / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(log_p, (teacher_logits / temperature).softmax(1), reduction="sum")""",
    ("10_invp", 2): """def purity(found, indices, labels):
    return ((found & (labels[None] == labels[indices][:, None])).sum(1) / found.sum(1)).mean()""",
    ("11_ressl", 2): "def crops_alone(recipe): return replace(recipe, flip=0.0, rotation=0.0, jitter=0.0)",
}
FEW = ("8_evaluation",)  # whose cells compare all images with all, and whose exercises do with fewer
SLOW = "slow-for-exercise"  # the tag of cells that no exercise needs, though they bind names that one uses


@dataclass
class Exercise:
    cell: str  # to fill in
    checks: list[str]  # the cells that follow, up to the solution
    solution: str


@dataclass
class Page:
    before: list[str]  # the code cells before the first exercise
    exercises: list[Exercise]


def read_page(path: Path) -> Page:
    "The code before the first exercise, and the exercises with their checks and solutions."
    page = Page([], [])
    for cell in json.loads(path.read_text())["cells"]:
        text, tags = "".join(cell["source"]), cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and "exercise" in tags:
            page.exercises.append(Exercise(text, [], ""))
        elif cell["cell_type"] == "code" and page.exercises:
            page.exercises[-1].checks.append(text)
        elif cell["cell_type"] == "code" and SLOW not in tags:
            page.before.append(text)
        elif page.exercises and not page.exercises[-1].solution:
            found = re.search(r"<summary>Solution</summary>.*?```python\n(.*?)```", text, re.S)
            page.exercises[-1].solution = found[1] if found else ""
    return page


def python_of(cell: str) -> str:
    "A cell without what only a notebook understands."
    return re.sub(r"^[%!].*$", "", cell, flags=re.M)


def names_of(cell: str) -> tuple[set[str], set[str]]:
    "The global names that a cell binds, and those that it uses, in its functions too."
    top = symtable.symtable(python_of(cell), "<cell>", "exec")
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    used, scopes = {s.get_name() for s in top.get_symbols() if s.is_referenced()}, list(top.get_children())
    while scopes:
        scope = scopes.pop()
        used |= {s.get_name() for s in scope.get_symbols() if s.is_global()}
        scopes += scope.get_children()
    return bound, used


def needed(before: list[str], exercises: list[Exercise]) -> list[str]:
    "The cells that bind, directly or by way of others, a name that the exercises use."
    own = [names_of(text) for e in exercises for text in (e.cell, *e.checks, e.solution)]
    wanted, kept = set().union(*(used for _, used in own)) - set().union(*(bound for bound, _ in own)), []
    for cell in reversed(before):
        bound, used = names_of(cell)
        if bound & wanted:
            kept.append(cell)
            wanted |= used
    return kept[::-1]


def run(cells: list[str], namespace: dict[str, Any]) -> str:
    "What the cells print."
    with redirect_stdout(io.StringIO()) as printed:
        for cell in cells:
            exec(compile(python_of(cell), "<cell>", "exec"), namespace)
    return printed.getvalue()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    "No window opens, files go to a folder that vanishes, and the threads are as they were."
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("path", [p for p in PAGES if read_page(p).exercises], ids=lambda p: p.stem)
@pytest.mark.usefixtures("quiet")
def test_checks_know_right_from_unfilled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, namespace = read_page(path), {"__name__": "lesson"}
    if path.stem in FEW:
        monkeypatch.setattr("isd_nb.sources.digits.digits", lambda: tuple(s.subset(range(400)) for s in digits()))
    run(needed(page.before, page.exercises), namespace)
    for number, exercise in enumerate(page.exercises, 1):
        assert re.search(r"^\s*\.\.\.", exercise.cell, re.M), f"exercise {number} holds `...` to fill in"
        assert exercise.checks, f"exercise {number} has no check in a cell of its own"
        assert exercise.solution, f"exercise {number} has no ```python block under <summary>Solution</summary>"
        before = run([exercise.cell, *exercise.checks], namespace)
        assert before.strip() and "Right" not in before, f"exercise {number}, unfilled: {before!r}"
        after = run([exercise.cell, exercise.solution, *exercise.checks], namespace)
        assert "Right" in after, f"exercise {number}, with its solution: {after!r}"
        if wrong := WRONG.get((path.stem, number)):
            assert "Right" not in run([wrong, *exercise.checks], namespace), f"exercise {number}, wrong"


def test_a_wrong_answer_is_not_right() -> None:
    cell = "from isd_nb.explore.exercises import check\n"
    assert "Right" not in run([cell + "check(lambda: 7, 6)"], {})
    assert run([cell + "check(lambda: 6, 6)"], {}) == "Right\n"


def test_a_tiny_student_leaves_the_generator_as_it_was() -> None:
    from isd_nb.explore.exercises import tiny_student

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = tiny_student()
    assert torch.rand(1) == expected
    torch.manual_seed(4)
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), tiny_student().parameters()))
