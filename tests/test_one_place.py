"""What several places need stands in one: an option of several commands, a run of code lines, a saved number."""
import ast
import inspect
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import pytest
from typer.models import ArgumentInfo, OptionInfo

from isd_nb.cli import options

ROOT = Path(__file__).parent.parent
NAMES = ("train", "evaluate", "compare", "explore", "embed", "export", "pack")
COMMANDS = {name: import_module(f"isd_nb.cli.{name}") for name in NAMES}


def declared(module: Any) -> dict[str, Any]:  # by flag, the annotation
    "What a command takes."
    found = {}
    for name, parameter in inspect.signature(module.command).parameters.items():
        assert get_origin(parameter.annotation) is Annotated
        (info,) = parameter.annotation.__metadata__
        flag = info.default if isinstance(info.default, str) else f"--{name.replace('_', '-')}"  # a name
        found[name if isinstance(info, ArgumentInfo) else flag.partition("/")[0]] = parameter.annotation
    return found


TAKEN = {name: declared(module) for name, module in COMMANDS.items()}
COUNTS = Counter(flag for taken in TAKEN.values() for flag in taken)


def test_every_command_is_read() -> None:
    files = {p.stem for p in (ROOT / "isd_nb" / "cli").glob("*.py") if "def command(" in p.read_text()}
    assert files == set(COMMANDS) and COUNTS["--data"] == 5 and COUNTS["--root"] == 6


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_that_two_commands_have_is_declared_in_the_page_of_options(name: str) -> None:
    shared = [flag for flag in TAKEN[name] if COUNTS[flag] > 1]
    in_options = {id(value) for value in vars(options).values()}
    assert not [flag for flag in shared if id(TAKEN[name][flag]) not in in_options]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_what_stands_with_the_options_is_not_of_one_command_alone(name: str) -> None:
    in_options = {id(value) for value in vars(options).values()}
    alone = [flag for flag in TAKEN[name] if COUNTS[flag] == 1 and id(TAKEN[name][flag]) in in_options]
    assert not alone, f"these belong into the file of the command {name}, and not into options.py"


def test_no_option_is_declared_twice() -> None:
    "Two with one flag differ in sentence, type or limit; and a sentence stands once."
    found = {id(annotation): (flag, info.help, info.min, str(get_args(annotation)[0])) for taken in TAKEN.values()
             for flag, annotation in taken.items() for info in annotation.__metadata__}
    assert [text for text, count in Counter(found.values()).items() if count > 1] == []
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / "isd_nb" / "cli").glob("*.py"))]
    texts = [ast.unparse(word.value) for tree in trees for call in ast.walk(tree) if isinstance(call, ast.Call)
             and getattr(call.func, "id", "") in ("Option", "Argument") for word in call.keywords if word.arg == "help"]
    assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_every_declared_option_is_taken() -> None:
    held = {id(value): name for name, value in vars(options).items() if get_origin(value) is Annotated
            and isinstance(value.__metadata__[0], OptionInfo | ArgumentInfo)}
    taken = {id(annotation) for each in TAKEN.values() for annotation in each.values()}
    assert not [name for key, name in held.items() if key not in taken]


LENGTH = 6  # equal lines that make a run
Line = tuple[str, int, str]  # place, number, text

# Runs that are wanted, each by its first line, with the reason.
WANTED: dict[str, str] = {}


def lines_of(text: str, place: str) -> list[Line]:
    "The lines of code, with single spaces; without imports, comments and blank lines."
    left, inside = [], False
    for number, line in enumerate(text.splitlines(), 1):
        words = " ".join(line.split())
        if inside or words.startswith("import ") or (words.startswith("from ") and " import " in words):
            inside = (inside or "(" in words) and ")" not in words
        elif words and not words.startswith("#"):
            left.append((place, number, words))
    return left


def pieces() -> Iterator[list[Line]]:
    "Modules of the package, and cells of notebooks that are not exported to them."
    for path in sorted((ROOT / "isd_nb").rglob("*.py")):
        if path.stem != "_modidx":
            yield lines_of(path.read_text(), str(path.relative_to(ROOT)))
    for path in sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts):
        for number, cell in enumerate(json.loads(path.read_text())["cells"]):
            code = "".join(cell["source"])
            installs = "install" in cell["metadata"].get("tags", ())
            if cell["cell_type"] == "code" and not code.startswith("#| export") and not installs:
                yield lines_of(code, f"{path.relative_to(ROOT)}, cell {number}")


def runs_in(texts: Iterable[list[Line]]) -> dict[str, list[str]]:  # places by the first line of a run
    "Runs of equal lines that lie in more than one place; of a longer run, its first lines."
    found: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    for lines in texts:
        for start in range(len(lines) - LENGTH + 1):
            window = lines[start:start + LENGTH]
            found.setdefault(tuple(words for *_, words in window), []).append(window[0][:2])
    twice = {key: places for key, places in found.items() if len(places) > 1}
    later = {key[1:] for key in twice}
    return {key[0]: [f"{place}, line {number}" for place, number in places] for key, places in twice.items()
            if key[:-1] not in later}


def test_no_run_of_code_lines_stands_twice() -> None:
    found = runs_in(pieces())
    assert set(found) == set(WANTED), "move it to one place, or add it to WANTED with its reason"


def test_a_run_is_seen_whatever_its_spaces_and_imports() -> None:
    code = "a = 1\nb = 2\nc = 3\nd = 4\n\ne = 5\nf = 6\ng = 7\n"
    other = "x = 0\na  =  1\nb = 2\nfrom z import (\n    y)\nc = 3\nd = 4\n# why\ne = 5\nf = 6\n"
    assert runs_in([lines_of(code, "one"), lines_of(other, "two")]) == {"a = 1": ["one, line 1", "two, line 2"]}
    assert not runs_in([lines_of(code, "one"), lines_of(other.replace("c = 3", "c = 4"), "two")])


READERS = {"saved_results", "saved_run", "read_result"}  # functions of the package that open files of results/
COMPUTE = {"train", "train_or_go_on", "finish", "embed", "load_encoder", "digits", "build_method"}  # what takes time
CHANGE = {"append", "extend", "add", "update", "setdefault"}  # methods that change what they belong to
Inner = ast.FunctionDef | ast.ClassDef | ast.Lambda


class Statement(NamedTuple):
    "A statement of a page, with the names it takes from others and gives to them."
    cell: int
    code: str
    uses: frozenset[str]
    gives: frozenset[str]
    calls: frozenset[str]  # names outside of the bodies of functions
    reads: bool  # files of results/


def base_name(node: ast.AST) -> str:
    "`runs` of `runs[0].found`."
    while isinstance(node, ast.Subscript | ast.Attribute | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def outer(node: ast.AST) -> Iterator[ast.AST]:
    "A statement and its parts, without the bodies of functions."
    yield node
    if not isinstance(node, Inner):
        for child in ast.iter_child_nodes(node):
            yield from outer(child)


def read_line(cell: int, statement: ast.stmt) -> Statement:
    "What a statement takes and gives."
    nodes, near = list(ast.walk(statement)), list(outer(statement))
    loops = [c.target for c in nodes if isinstance(c, ast.comprehension)]
    inner = {n.id for target in loops for n in ast.walk(target) if isinstance(n, ast.Name)}
    inner |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    bound = {n.id for f in near if isinstance(f, ast.For) for n in ast.walk(f.target) if isinstance(n, ast.Name)}
    gives = {n.id for n in near if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} - inner | bound
    gives |= {n.name for n in near if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    imported = [a for n in near if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names]
    gives |= {a.asname or a.name.partition(".")[0] for a in imported}
    gives |= {base_name(n) for n in near if isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Store)}
    gives |= {base_name(n.value) for n in near if isinstance(n, ast.Attribute) and n.attr in CHANGE}
    uses = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} - inner - bound
    calls = {n.id for n in near if isinstance(n, ast.Name)}
    texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    reads = any("../results" in text for text in texts) or bool(uses & READERS)
    return Statement(cell, ast.unparse(statement), frozenset(uses), frozenset(gives), frozenset(calls), reads)


def needed(lines: list[Statement], waiting: list[int]) -> list[int]:
    "The statements that some need, and these, in their order: for every name the last before that gives or changes it."
    givers: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        for name in line.gives:
            givers.setdefault(name, []).append(number)
    chosen: set[int] = set()
    while waiting:
        number = waiting.pop()
        if number not in chosen:
            chosen.add(number)
            for found in (givers[name] for name in lines[number].uses if name in givers):
                before = [n for n in found if n < number]
                later = lines[number].code.startswith(("def ", "class "))  # its names are read when it is called
                waiting += before[-1:] or found[:1] * later
    return sorted(chosen)


class Page(NamedTuple):
    "What of a page is run again."
    lines: list[Statement]
    shown: dict[int, str]  # by cell, what it printed when the page was saved
    order: list[int]  # of the statements


def read_page(path: Path) -> Page:
    "Its printing cells that need files of results/, and nothing that takes time."
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    lines = [read_line(n, s) for n, c in enumerate(cells) for s in ast.parse("".join(c["source"])).body]
    slow = COMPUTE & {name for line in lines if "import " in line.code for name in line.gives}
    shown, order = {}, set()
    for number, cell in enumerate(cells):
        text = "".join("".join(o["text"]) for o in cell["outputs"] if o.get("name") == "stdout")
        mine = needed(lines, [n for n, line in enumerate(lines) if line.cell == number]) if text else []
        if any(lines[n].reads for n in mine) and not any(lines[n].calls & slow for n in mine):
            shown[number] = text
            order |= set(mine)
    return Page(lines, shown, sorted(order))


def printed(page: Page, folder: Path) -> dict[int, str]:  # by cell
    "What a page prints when it is run in a folder; of a statement that raises, its error."
    names: dict[str, Any] = {"__name__": "page"}
    found: dict[int, str] = dict.fromkeys(page.shown, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number in page.order:
            line = page.lines[number]
            with redirect_stdout(StringIO()) as text:
                try:
                    exec(compile(line.code, f"cell {line.cell}", "exec"), names)
                except Exception as error:  # an assertion that a number no longer fulfils, or what comes of it
                    text.write(f"{type(error).__name__}: {error}")
            names |= {"display": lambda *_: None} if "display" in names else {}
            if line.cell in found:
                found[line.cell] += text.getvalue()
    return found


PAGES = (
    "1_isd/6_isd", "1_isd/7_collapse", "3_claims/01_teacher_and_student", "3_claims/02_soft_and_binary",
    "3_claims/03_few_labels", "3_claims/05_all_methods", "3_claims/06_parts",
    "4_your_images/4_from_pretrained_weights", "4_your_images/5_features_to_a_file",
    "machine_room/05_bfloat16_attention", "machine_room/18_loss_in_practice", "machine_room/26_packed",
    "machine_room/44_scorer", "machine_room/66_evidence", "machine_room/86_benchmarks",
)


@cache
def page_of(name: str) -> Page:
    return read_page(ROOT / "nbs" / f"{name}.ipynb")


@pytest.fixture(autouse=True)
def no_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    "Figures are drawn nowhere."
    monkeypatch.setenv("MPLBACKEND", "Agg")


def test_the_pages_that_show_saved_numbers_are_seen() -> None:
    names = [str(path.relative_to(ROOT / "nbs").with_suffix("")) for path in sorted((ROOT / "nbs").rglob("*.ipynb"))
             if ".ipynb_checkpoints" not in path.parts and "result" in path.read_text()]
    assert tuple(name for name in names if page_of(name).shown) == PAGES, "PAGES lists those that print from results/"
    assert sum(len(page_of(name).shown) for name in PAGES) >= 45


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_shows_of_results_is_in_the_files(name: str) -> None:
    found = printed(page_of(name), (ROOT / "nbs" / name).parent)
    assert found == page_of(name).shown, "execute the page again"


def changed(value: Any) -> Any:
    "The same with other fractions."
    if isinstance(value, dict):
        return {key: changed(v) for key, v in value.items()}
    if isinstance(value, list):
        return [changed(v) for v in value]
    return 0.9 * value - 0.02 if isinstance(value, float) else value


@pytest.mark.filterwarnings("ignore")
def test_a_changed_number_is_seen_on_its_page(tmp_path: Path) -> None:
    name = "machine_room/86_benchmarks"
    place = (tmp_path / "nbs" / name).parent
    place.mkdir(parents=True)
    (tmp_path / "results").mkdir()
    for path in (ROOT / "results").glob("*"):
        (tmp_path / "results" / path.name).symlink_to(path)
    assert printed(page_of(name), place) == page_of(name).shown
    file = tmp_path / "results" / "digits-1.json"
    values = json.loads(file.read_text())
    file.unlink()
    file.write_text(json.dumps(changed(values)))
    different = [cell for cell, text in printed(page_of(name), place).items() if text != page_of(name).shown[cell]]
    assert len(different) == 1
