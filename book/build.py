"""Builds the book's website from the executed notebooks, without a network and without running anything.

    python book/build.py [--out _site]

Notebooks are copied beside the hand-written pages of `book/pages`; on the way lines with directives go, imports and
long plotting cells are folded, and names in backquotes become links to the reference, which is made from the source.
"""
import argparse
import ast
import configparser
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "course"))
from handouts import write_handouts  # noqa: E402
from quiz import quiz_page  # noqa: E402
from slides import build_page  # noqa: E402

COURSE = ("README", "plans", "quiz", "project")  # pages of course/
HERE = ('\n<p>On this site: <a href="lecture.html">the slides</a>, <a href="handouts.zip">notebooks without solutions'
        '</a>.</p>\n')
PARTS = (  # folder of nbs/, title, what it is for
    ("1_isd", "The course", "Nine lessons that build ISD from a random crop to an explorer, fifteen minutes each."),
    ("2_relatives", "Relatives", "The family of ISD: every system of the poster, each in a short notebook."),
    ("3_claims", "Claims", "What the paper claims, put to the test; the table of all methods."),
    ("4_your_images", "Your images", "Your folder, your network, somebody else's weights."),
    ("gpu", "On a GPU", "CIFAR-10 to ImageNet on one GPU or many."),
    ("machine_room", "Machine room", "How it is done: sources, kernels, engine, protocols, explorer, commands."))


@dataclass(frozen=True)
class Name:
    "A public name of the package."
    module: str  # without the package's name, e.g. "engine.runs"
    name: str
    source: str  # its header as it stands in the source, with the comments beside the arguments
    doc: str

    @property
    def label(self) -> str:
        "The target of links to it."
        kind = "class" if self.source.lstrip().startswith(("class", "@dataclass")) else "function"  # `Score`, `score`
        return f"api-{kind}-{self.module}-{self.name}".replace(".", "-").replace("_", "-").lower()


def public_names(path: Path) -> list[str]:
    "What a module's `__all__` lists."
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [e.value for e in node.value.elts]
    return []


def header_of(node: ast.AST, lines: list[str]) -> str:
    "The lines of a definition up to its docstring or first statement."
    body = node.body[1:] if ast.get_docstring(node) else node.body
    first = node.body[0].lineno - 1
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
    head = lines[start:first]
    if isinstance(node, ast.ClassDef):
        fields = [n for n in body if isinstance(n, ast.AnnAssign)]
        methods = [n for n in body if isinstance(n, ast.FunctionDef) and (n.name == "__init__" or n.name[0] != "_")]
        head += [lines[i] for n in fields for i in range(n.lineno - 1, n.end_lineno)]
        for method in methods:
            head += ["", *header_of(method, lines).splitlines()]
    return "\n".join(head)


def names_of(path: Path, module: str) -> Iterator[Name]:
    "The public functions and classes that a module defines."
    text = path.read_text()
    wanted, lines = public_names(path), text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in wanted:
            yield Name(module, node.name, header_of(node, lines), ast.get_docstring(node) or "")


def package_modules() -> dict[str, Path]:
    "Every module that a notebook exports, by name."
    package = ROOT / "isd_nb"
    found = {".".join(p.relative_to(package).with_suffix("").parts): p for p in sorted(package.rglob("*.py"))}
    return {name: path for name, path in found.items() if notebook_of(path)}


def notebook_of(path: Path) -> str:
    "The notebook that a module comes from, relative to the root, without its ending; empty where none does."
    found = re.search(r"File to edit: (?:\.\./)*(nbs/\S+)\.ipynb", path.read_text())
    return found.group(1) if found else ""


def write_reference(out: Path, titles: dict[str, str]) -> dict[str, Name]:  # names that one module alone defines
    "A page for every module, and one that lists them."
    seen: dict[str, list[Name]] = {}
    rows = []
    for module, path in package_modules().items():
        names = list(names_of(path, module))
        if not names:
            continue
        about, notebook = ast.get_docstring(ast.parse(path.read_text())) or "", notebook_of(path)
        origin = f"Defined and tested in [{titles[notebook]}](/{notebook}.ipynb)."
        page = [f"# `isd_nb.{module}`", "", about, "", origin, ""]
        for name in names:
            seen.setdefault(name.name, []).append(name)
            page += [f"({name.label})=", f"## `{name.name}`", "", name.doc, "", "```python", name.source, "```", ""]
        (out / f"{module}.md").write_text("\n".join(page))
        rows.append((module, about))
    lines = ["# Reference", "", "Every public name, by module. Comments beside arguments give shapes and units.", ""]
    lines += ["| module | |", "|---|---|", *(f"| [`{m}`]({m}.md) | {about} |" for m, about in rows), ""]
    lines += ["```{toctree}", ":hidden:", "", *(m for m, _ in rows), "```", ""]
    (out / "index.md").write_text("\n".join(lines))
    spellings = Counter(name.lower() for name in seen)  # targets do not know capitals
    return {name: found[0] for name, found in seen.items() if len(found) == 1 and spellings[name.lower()] == 1}


def link_names(text: str, names: dict[str, Name]) -> str:
    "Names in backquotes as links, outside code blocks, formulas and links."
    def link(match: re.Match) -> str:
        name = names.get(match.group(1))
        return f"[`{match.group(1)}`](#{name.label})" if name else match.group()
    parts = re.split(r"(```.*?```|<details>.*?</details>)", text, flags=re.S)
    return "".join(p if i % 2 else re.sub(r"(?<![\[`\w])`(\w+)`(?![\]`])", link, p) for i, p in enumerate(parts))


def is_folded(source: str) -> bool:
    "Whether a cell is imports alone, or a long one that draws."
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    imports = all(re.match(r"(from|import) |\s|\)", line) for line in lines)
    return bool(lines) and (imports or (len(lines) > 6 and ("plt." in source or "fig, " in source)))


def page_of(notebook: dict[str, Any], path: Path, names: dict[str, Name]) -> dict[str, Any]:
    "A notebook as a reader of the website wants it."
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            cells.append(cell | {"source": link_names(source, names)})
        elif "#| default_exp" not in source and source.strip():
            source = re.sub(r"^\s*#\|.*\n?", "", source, flags=re.M)
            tags = [*cell["metadata"].get("tags", []), *(["hide-input"] if is_folded(source) else [])]
            cells.append(cell | {"source": source, "metadata": {"tags": tags}})
    badge = {"cell_type": "markdown", "id": "download", "metadata": {},
             "source": f"{{download}}`Download this notebook </downloads/{path.as_posix()}>`"}
    return notebook | {"cells": [*cells[:1], badge, *cells[1:]]}


def title_of(notebook: dict[str, Any]) -> tuple[str, str]:
    "The title and the sentence below it."
    text = "".join(notebook["cells"][0]["source"])
    title = re.search(r"^# (.+)$", text, re.M)
    about = re.search(r"^> (.+(?:\n> .+)*)", text, re.M)
    return title.group(1) if title else "", about.group(1).replace("\n> ", " ") if about else ""


def lay_out(source: Path) -> None:
    "Write everything that Sphinx reads."
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "book" / "pages", source)
    for name in ("conf.py", "_static"):
        origin = ROOT / "book" / name
        (shutil.copytree if origin.is_dir() else shutil.copy)(origin, source / name)
    copy_mathjax(source / "_static" / "mathjax")
    shutil.copytree(ROOT / "results" / "figures", source / "results" / "figures")
    paths = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    notebooks = {p.relative_to(ROOT): json.loads(p.read_text()) for p in paths}
    titles = {path.with_suffix("").as_posix(): title_of(notebook)[0] for path, notebook in notebooks.items()}
    (source / "api").mkdir()
    names = write_reference(source / "api", titles)
    for path, notebook in notebooks.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(json.dumps(page_of(notebook, path, names)))
        (source / "downloads" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / "downloads" / path)
    write_course(source)
    for folder, title, about in PARTS:
        write_part(source, folder, title, about, {p: n for p, n in notebooks.items() if p.parts[1] == folder})


def write_course(source: Path) -> None:
    "The pages for lecturers, the slides, and the notebooks without solutions as one archive."
    out, extra = source / "course", source / "extra" / "course"
    for folder in (out, extra):
        folder.mkdir(parents=True)
    for name in COURSE:
        text = (ROOT / "course" / f"{name}.md").read_text()
        (out / f"{name}.md").write_text(quiz_page(text) if name == "quiz" else text)
    text = (out / "README.md").read_text().replace("\n## The day before", HERE + "\n## The day before", 1)
    (out / "README.md").write_text(text + "\n```{toctree}\n:hidden:\n\n" + "\n".join(COURSE[1:]) + "\n```\n")
    (extra / "lecture.html").write_text(build_page((ROOT / "course" / "lecture.md").read_text()))
    packed = source.parent / "handouts"
    shutil.rmtree(packed, ignore_errors=True)
    write_handouts(packed / "course" / "handouts")
    shutil.copytree(ROOT / "results" / "collapse", packed / "results" / "collapse")  # lesson 7 reads them
    shutil.make_archive(str(extra / "handouts"), "zip", packed)


def number_of(path: Path) -> str:
    "The number that a notebook's name begins with, for the sidebar."
    found = re.match(r"0*(\d+)_", path.name)
    return f"{found.group(1)} " if found else ""


def write_part(source: Path, folder: str, title: str, about: str, notebooks: dict[Path, dict[str, Any]]) -> None:
    "The page of a part: its notebooks with a sentence each."
    lines = [f"# {title}", "", about, ""]
    for path, notebook in notebooks.items():
        name, sentence = title_of(notebook)
        lines += [f"* [{name}](/{path.as_posix()}): {sentence}"]
    entries = [f"{number_of(p)}{title_of(n)[0]} </{p.with_suffix('').as_posix()}>" for p, n in notebooks.items()]
    lines += ["", "```{toctree}", ":hidden:", "", *entries, "```", ""]
    (source / f"{folder}.md").write_text("\n".join(lines))


def copy_mathjax(out: Path) -> None:
    "MathJax from the package that brings it: one script and its fonts."
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise SystemExit("formulas need the package sphinx-mathjax-offline: pip install 'isd_nb[dev]'")
    package = Path(spec.origin).parent / "static" / "mathjax"
    out.mkdir(parents=True)
    shutil.copy(package / "tex-chtml.js", out)
    shutil.copytree(package / "output" / "chtml" / "fonts", out / "output" / "chtml" / "fonts")


def write_llms(out: Path) -> None:
    "`llms.txt`: what is where, for readers that are programs."
    settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    lines = ["# isd_nb", "", f"> {settings['DEFAULT']['description']}", ""]
    lines += ["## For lecturers", "", *(f"- [{name}](course/{name}.html)" for name in COURSE), ""]
    for folder, title, _ in PARTS:
        lines += [f"## {title}", ""]
        for path in sorted((ROOT / "nbs" / folder).glob("*.ipynb")):
            name, sentence = title_of(json.loads(path.read_text()))
            lines.append(f"- [{name}](nbs/{folder}/{path.stem}.html): {sentence}")
        lines.append("")
    (out / "llms.txt").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "_site")
    out = parser.parse_args().out.resolve()
    source = ROOT / "_build" / "book"
    lay_out(source)
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-d", ROOT / "_build" / "doctrees", source, out]
    subprocess.run([str(part) for part in command], check=True)
    write_llms(out)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / 1e6
    print(f"The book is in {out} ({size:.0f} MB): open {out / 'index.html'}")


if __name__ == "__main__":
    main()
