"""What only Unix has is not needed: Windows reads, packs, trains and compares, too."""
import ast
import io
import json
import os
import re
import sys
import tarfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from isd_nb.kernels.archives import read_bytes, split_archive
from isd_nb.recipe import find_recipe, recipe_to_json
from isd_nb.sources.identity import some_bytes
from isd_nb.studies import compare

PACKAGE = Path(__file__).parent.parent / "isd_nb"
UNIX_MODULES = {"crypt", "fcntl", "grp", "nis", "posix", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty"}
UNIX_CALLS = {"chown", "fork", "forkpty", "geteuid", "getpgid", "getuid", "initgroups", "killpg", "lchown", "mkfifo",
              "nice", "pread", "preadv", "pwrite", "pwritev", "sched_setaffinity", "sendfile", "setpgid", "setsid",
              "setuid", "statvfs", "sync", "wait3", "wait4", "waitid"}


def guarded(tree: ast.AST) -> set[ast.AST]:
    "What stands in a `try`, in a `with`, or in a function: it is not run at import, or may fail there."
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.Try | ast.With | ast.FunctionDef)]
    return {inner for block in blocks for inner in ast.walk(block)}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_that_only_unix_has(path: Path) -> None:
    "No such module where a module is imported, no such call of `os` anywhere."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = guarded(tree)
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) and n not in inside for a in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n not in inside}
    calls = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "os"}
    assert not names & UNIX_MODULES and not calls & UNIX_CALLS


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_text_is_written_in_utf8(path: Path) -> None:
    "A file that is opened to be written states its encoding, unless no text of ours goes into it."
    for call in (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        mode = [a.value for a in call.args if isinstance(a, ast.Constant) and a.value in ("w", "a", "w+")]
        line = ast.unparse(call)
        if name == "write_text" or (name == "open" and mode and not re.search(r"devnull|lock|\blog\b|log_of", line)):
            assert any(k.arg == "encoding" for k in call.keywords), line


def test_bytes_are_read_without_pread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A large file by three pieces, and members of a zip and a tar."
    data = bytes(range(256)) * 400
    (tmp_path / "large.bin").write_bytes(data)
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / f"set{kind}.zip", "w", kind) as packed:
            packed.writestr("a/1.bin", data)
    with tarfile.open(tmp_path / "set.tar", "w") as tarred:
        tarred.add(tmp_path / "large.bin", "a/1.bin")
    monkeypatch.delattr(os, "pread", raising=False)
    pieces = [data[start:start + 1000] for start in (0, len(data) // 2, len(data) - 1000)]
    assert some_bytes(os.fsencode(tmp_path / "large.bin"), 1000) == b"".join(pieces)
    for name in ("set0.zip", "set8.zip", "set.tar"):
        assert read_bytes(tmp_path / name / "a/1.bin") == data


def test_paths_into_archives_with_backslashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos.zip").touch()
    (tmp_path / r"photos.zip\1.png").touch()
    assert split_archive(rf"{tmp_path}/photos.zip\1.png") is None, "elsewhere a backslash is a letter"
    monkeypatch.setattr(os, "sep", "\\")
    assert split_archive(rf"{tmp_path}/photos.zip\train\cat\1.png") == (tmp_path / "photos.zip", "train/cat/1.png")
    assert split_archive(f"{tmp_path}/photos.zip") == (tmp_path / "photos.zip", "")


def test_a_comparison_needs_neither_locks_nor_getrusage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()
    task = compare.Task(find_recipe("digits"), str(tmp_path / "isd-0"), {})
    given = json.dumps(asdict(task) | {"recipe": recipe_to_json(task.recipe)})
    done: list[compare.Task] = []
    for name in ("fcntl", "resource"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("sys.stdin", io.StringIO(given))
    monkeypatch.setattr(compare, "work", done.append)
    compare.worker()
    assert done == [task], "without a lock, where there are none"
    held = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=300 << 20))
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Process=lambda: held))
    monkeypatch.setattr(Path, "exists", lambda path: False)  # no /proc
    assert compare.peak_memory() == 300
