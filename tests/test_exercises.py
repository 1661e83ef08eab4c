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
WRONG = [  # by page and exercise: answers that a student may well give
    ("1_views", 2, """def apart(a, b):
    return ((a.top - b.top).abs() >= a.height) | ((a.left - b.left).abs() >= a.width)"""),
    ("1_views", 2, """def apart(a, b):  # the upper left corners alone
    def holds(a, b):
        return (a.top <= b.top) & (b.top < a.top + a.height) & (a.left <= b.left) & (b.left < a.left + a.width)
    return ~(holds(a, b) | holds(b, a))"""),
    ("1_views", 2, """def apart(a, b):  # all corners, and no crossing
    def holds(a, b):
        rows = [(a.top < y) & (y < a.top + a.height) for y in (b.top, b.top + b.height)]
        columns = [(a.left < x) & (x < a.left + a.width) for x in (b.left, b.left + b.width)]
        return sum(r & c for r in rows for c in columns) > 0
    return ~(holds(a, b) | holds(b, a))"""),
    ("2_encoders", 1, "def mirror_blind(encode, images): return encode((images + images.flip(3)) / 2)"),
    ("2_encoders", 2, "def weights_of_head(i, h, o): return i * h + 2 * h + h * o + i"),
    ("2_encoders", 2, "def weights_of_head(i, h, o): return i * h + 3 * h + h * o + o"),
    ("3_queue", 1, "def overwritten_in_step(i, K, B): return (i + K - 1) // B"),
    ("3_queue", 1, "def overwritten_in_step(i, K, B): return (i + K + 1) // B"),
    ("3_queue", 1, "import math\ndef overwritten_in_step(i, K, B): return math.ceil((i + K) / B) - 1"),
    ("4_soft_labels", 1, "def temperature_for(gap, ratio): return gap / 5"),
    ("5_teacher", 1, """def updated(teacher, student, momentum):
    return [momentum * s + (1 - momentum) * t for t, s in zip(teacher, student)]"""),
    ("6_isd", 1, "def symmetric_loss(method, view_q, view_k): return method(view_q, view_k).loss"),
    ("6_isd", 2, """def contrastive_loss(q, k, a, temperature):
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ a.T], 1)
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))"""),
    ("6_isd", 2, """def contrastive_loss(queries, keys, anchors, temperature):
    logits = torch.cat([queries @ keys.T, queries @ anchors.T], 1) / temperature
    return F.cross_entropy(logits, torch.arange(len(queries)))"""),
    ("7_collapse", 1, """import math
def rounds_until(a, b, s, t): return round(math.log(b / a) / math.log(s / t))"""),
    ("7_collapse", 2, "def flat_vectors(g): return 5 * torch.randn(200, 2, generator=g)"),
    ("8_evaluation", 1, """def best_k(features, labels, groups, ks):  # copies of held-out images stay in the rest
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[stratified_fraction(labels, 0.2)] = True
    return max(ks, key=lambda k: knn_accuracy(features[~held], labels[~held], features[held], labels[held], k))"""),
    ("00_family_tree", 1, "def a_tenth_of_moco(): return Knobs(one_hot=0.1, own_key=True)"),
    ("00_family_tree", 2, "def stationary_label(keys, anchors): return soft_labels(keys, anchors, temperature=0.04)"),
    ("00_family_tree", 2, "def stationary_label(keys, anchors): return 0 * (keys @ anchors.T)"),
    ("04_byol", 1, "def best_prediction(keys): return F.normalize(F.normalize(keys, dim=0).mean(0), dim=0)"),
    ("04_byol", 1, "def best_prediction(keys): return F.normalize(torch.ones(keys.shape[1]), dim=0)"),
    ("05_simsiam", 1, "def even_deviation(D): return (D - 1) ** -0.5"),
    ("05_simsiam", 1, "def even_deviation(D): return (D + 1) ** -0.5"),
    ("05_simsiam", 1, "def even_deviation(D): return 4 / D"),
    ("06_co2", 1, """def two_directions(queries, keys, anchors, temperature):
    there = soft_label_loss(queries, keys, anchors, temperature, temperature)
    return (there + soft_label_loss(keys, queries, anchors, temperature, temperature)) / 2"""),
    ("06_co2", 2, """def jensen_shannon(queries, keys, anchors, temperature):
    p, r = ((x @ anchors.T / temperature).softmax(1) for x in (queries, keys))
    mixed, *own = (torch.special.entr(x).sum(1) for x in ((p + r) / 2, p, r))
    return (mixed - sum(own) / 2).sum()"""),
    ("06_co2", 2, """def jensen_shannon(queries, keys, anchors, temperature):
    p, r = ((x @ anchors.T / temperature).softmax(1).mean(0) for x in (queries, keys))
    mixed, *own = (torch.special.entr(x).sum() for x in ((p + r) / 2, p, r))
    return mixed - sum(own) / 2"""),
    ("06_co2", 2, """def jensen_shannon(queries, keys, anchors, temperature):
    p, r = ((x @ anchors.T / temperature).mean(0).softmax(0) for x in (queries, keys))
    mixed, *own = (torch.special.entr(x).sum() for x in ((p + r) / 2, p, r))
    return mixed - sum(own) / 2"""),
    ("08_compress", 2, """def distil_classes(student_logits, teacher_logits, temperature):
    log_p = (student_logits / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(log_p, (teacher_logits / temperature).softmax(1), reduction="sum")"""),
    ("08_compress", 2, """def distil_classes(student_logits, teacher_logits, temperature):
    log_p = (student_logits / temperature).log_softmax(1)
    return temperature * 2 * F.kl_div(log_p, (teacher_logits / temperature).softmax(1), reduction="batchmean")"""),
    ("09_pirl", 1, "def mean_ages(N, K, B): return [0.6 * N / B, K / (2 * B)]"),
    ("09_pirl", 2, "def bank_cross_entropy(v, rows, i, tau): return F.cross_entropy(v @ rows.T * tau, i)"),
    ("09_pirl", 2, "def bank_cross_entropy(v, rows, i, tau): return F.cross_entropy(v @ rows.T, i)"),
    ("09_pirl", 2, """def bank_cross_entropy(v, rows, i, tau):
    logits = v @ rows.T / tau
    return F.cross_entropy(logits, logits.argmax(1))"""),
    ("09_pirl", 2, "def bank_cross_entropy(v, rows, i, tau): return F.cross_entropy(v[:1] @ rows.T / tau, i[:1])"),
    ("10_invp", 2, """def purity(found, indices, labels):
    return ((found & (labels[None] == labels[indices][:, None])).sum(1) / found.sum(1)).mean()"""),
    ("11_ressl", 2, "def crops_alone(recipe): return replace(recipe, flip=0.0, rotation=0.0, jitter=0.0)"),
    ("11_ressl", 2, "def crops_alone(recipe): return ViewRecipe(flip=0, jitter=0, grey=0, blur=0)"),
    ("11_ressl", 2, "def crops_alone(recipe): return replace(weakened(STRONG), flip=0, rotation=0)"),
    ("11_ressl", 2, "def crops_alone(recipe): return replace(weakened(recipe), flip=0, rotation=0, noise=0.5)"),
    ("12_sce", 1, "def mixed_label(w, soft): return torch.cat([torch.tensor([[w]]), (1 - w) * soft], 1)"),
    ("13_mean_shift", 1, "def loss_from_cosines(cosines): return cosines.max() - cosines.min()"),
    ("13_mean_shift", 1, "def loss_from_cosines(cosines): return 2 - (cosines[0] + cosines[-1])"),
    ("13_mean_shift", 1, "def loss_from_cosines(cosines): return len(cosines) - 1"),
]
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
            exec(compile(python_of(cell), f"<{hash(cell)}>", "exec"), namespace)  # a name for each, as in a notebook
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
        for wrong in (answer for *where, answer in WRONG if where == [path.stem, number]):
            assert "Right" not in run([wrong, *exercise.checks], namespace), f"exercise {number}, wrong: {wrong}"


def test_a_wrong_answer_is_not_right() -> None:
    cell = "from isd_nb.explore.exercises import check\n"
    assert "Right" not in run([cell + "check(lambda: 7, 6)"], {})
    assert run([cell + "check(lambda: 6, 6)"], {}) == "Right\n"


NONE = "something is None where a value is needed (a function that returns nothing?)"


@pytest.mark.parametrize("answer, expected, words", [
    ("[torch.ones(3), 1]", "[3, 1]", "the result at [0] has the shape (3,), it should be one number"),
    ("4203009", "4203008", "the result is 4203009, it should be 4203008"),
    ("100000.5", "100000.25", "the result is 100000.5, it should be 100000.25"),
    ("1 + 5j", "1", "the result is complex, it should be real"),
    ("torch.ones(2, device='meta')", "[1, 1]", "NotImplementedError: "),
    ("[np.ones(3), 1]", "[3, 1]", "the result at [0] has the shape (3,), it should be one number"),
    ("slope(torch.ones(2)) + 1", "1", f"{NONE}: TypeError: "),
    ("more(1)", "1", f"{NONE}: TypeError: "),
    ("empty() + 1", "1", "a function returns nothing"),
    ("len(empty())", "1", "a function returns nothing"),
])
def test_a_refusal_names_what_is_wrong(answer: str, expected: str, words: str) -> None:
    cells = ["import numpy as np\nimport torch\nfrom isd_nb.explore.exercises import check",
             "def slope(x): return x.grad * 2  # backward() is forgotten\n"
             "def empty(): ...\ndef more(x): return empty() + x"]
    assert run([*cells, f"check(lambda: {answer}, {expected})"], {}).startswith(f"Not yet: {words}")


def test_a_sparse_answer_counts() -> None:
    cell = "import torch\nfrom isd_nb.explore.exercises import check\n"
    cell += "check(lambda: torch.eye(2).to_sparse(), torch.eye(2))"
    assert run([cell], {}) == "Right\n"


def test_a_tiny_student_leaves_the_generator_as_it_was() -> None:
    from isd_nb.explore.exercises import tiny_student

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = tiny_student()
    assert torch.rand(1) == expected
    torch.manual_seed(4)
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), tiny_student().parameters()))
