"""What several places need stands in one: an option of several commands, a run of code lines, a saved number."""
import ast
import inspect
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

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
