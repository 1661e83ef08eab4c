"""Builds the book's website from the executed notebooks, without a network and without running anything.

    python book/build.py [--out _site] [--only nbs/index,nbs/1_isd/4_soft_labels] [--strict]

Notebooks are copied beside the hand-written pages of `book/pages`; on the way lines with directives go, imports and
long plotting cells are folded, and names in backquotes become links to the reference, which is made from the source.
"""
import argparse
import configparser
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from explorer import write_explorer
from reference import Name, front_names, package_modules, public_names, write_reference

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "course"))
from handouts import write_handouts  # noqa: E402
from quiz import quiz_page  # noqa: E402
from slides import build_page  # noqa: E402

NO_USER = "isd-nb"  # stands in settings.ini until the repository has an address
COURSE = ("README", "plans", "quiz", "project")  # pages of course/
HERE = ('\n<p>On this site: <a href="lecture.html">the slides</a>, <a href="handouts.zip">notebooks without solutions'
        '</a>.</p>\n')
PARTS = (  # folder of nbs/, title, what it is for
    ("1_isd", "The course", "Nine lessons that build ISD from a random crop to an explorer, about fifteen minutes each "
                            "and as long for the exercises."),
    ("2_relatives", "Relatives", "The family of ISD: every system of the poster, each in a short notebook."),
    ("3_claims", "Claims", "What the paper claims, put to the test; the table of all methods."),
    ("4_your_images", "Your images", "Your folder, your network, somebody else's weights."),
    ("gpu", "On a GPU", "CIFAR-10 to ImageNet on one GPU or many."),
    ("machine_room", "Machine room", "How it is done: sources, kernels, engine, protocols, explorer, commands."))


def link_names(text: str, names: dict[str, Name]) -> str:
    "Names in backquotes as links, outside code blocks, formulas and links."
    def link(match: re.Match) -> str:
        name = names.get(match.group(1))
        return f"[`{match.group(1)}`](#{name.label})" if name else match.group()
    parts = re.split(r"(```.*?```|<details>.*?</details>)", text, flags=re.S)
    return "".join(p if i % 2 else re.sub(r"(?<![\[`\w])`(\w+)`(?![\]`])", link, p) for i, p in enumerate(parts))


def with_small_anchor(link: str) -> str:
    "Headings have anchors without capitals on the site, and with them in Jupyter."
    page, _, anchor = link.partition("#")
    return link if "://" in page else f"{page}#{anchor.lower()}"


def is_shown(cell: dict[str, Any]) -> bool:
    "Whether a cell of code is of use on a page: not if it names the module, installs the package, or is empty."
    source = "".join(cell["source"])
    return bool(source.strip()) and "#| default_exp" not in source and "install" not in cell["metadata"].get("tags", [])


def is_folded(source: str) -> bool:
    "Whether a cell is imports alone, or a long one that draws."
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    imports = all(re.match(r"(from|import) |\s|\)", line) for line in lines)
    return bool(lines) and (imports or (len(lines) > 6 and ("plt." in source or "fig, " in source)))


def sentences(markdown: str) -> list[str]:
    "The sentences of the prose of a markdown cell: no headings, tables, formulas or folded parts."
    text = re.sub(r"```.*?```|<details>.*?</details>|\$\$.*?\$\$", "", markdown, flags=re.S)
    lines = [line for line in text.splitlines() if not line.startswith(("#", "|", ">"))]
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(lines))  # links as their text
    plain = re.sub(r"[`*$\\{}]", "", plain)
    return [s for s in re.split(r"(?<=[.!?:])\s+(?=[A-Z0-9\"'(])", plain.strip()) if s]


def alternative_text(cells: list[dict[str, Any]], number: int) -> str:
    """What a reader who does not see the picture of a cell is told.

    The line `#| fig-alt: ...` of the cell, or else the titles in its code, which state the findings of figures; where
    it has none, the sentence after the picture, or the last one before it.
    """
    source = "".join(cells[number]["source"])
    if given := re.search(r"^#\| *fig-alt: *(.+)$", source, re.M):
        return given.group(1).strip()
    titles = re.findall(r"""(?:suptitle\(|set_title\(|title=|title\()\s*(f?)(["'])(.+?)\2""", source)
    found = [text for formatted, _, text in titles if not (formatted and "{" in text) and " " in text]
    if found:
        return "Figure: " + "; ".join(dict.fromkeys(found))
    before, after = (prose_at(cells, number + step) for step in (-1, 1))
    told = ([] if after.startswith("#") else sentences(after)[:1]) + sentences(before)[-1:]
    return next((f"Figure: {text}" for text in told if not text.endswith((":", "?"))), "")


def prose_at(cells: list[dict[str, Any]], number: int) -> str:
    "The text of a cell, if there is one and it is prose."
    inside = 0 <= number < len(cells) and cells[number]["cell_type"] == "markdown"
    return "".join(cells[number]["source"]).lstrip() if inside else ""


def has_picture(cell: dict[str, Any]) -> bool:
    "Whether a cell left a picture behind."
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def settings() -> configparser.SectionProxy:
    "What settings.ini states of the package."
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def repository() -> str:  # "" until it has a real one
    "The repository's address on GitHub: `user/repo` of settings.ini."
    own = settings()
    return "" if own["user"] == NO_USER else f"{own['user']}/{own['repo']}"


def badges(path: Path, address: str) -> str:
    "Links of a page to its notebook: as a file, and where the repository has an address in Colab and for editing."
    links = [f"{{download}}`Download this notebook </downloads/{path.as_posix()}>`"]
    if address:
        links += [f"[Open in Colab](https://colab.research.google.com/github/{address}/blob/main/{path.as_posix()})",
                  f"[Edit on GitHub](https://github.com/{address}/edit/main/{path.as_posix()})"]
    return " · ".join(links)


def page_of(notebook: dict[str, Any], path: Path, names: dict[str, Name]) -> dict[str, Any]:
    "A notebook as a reader of the website wants it."
    cells = []
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = source.replace("](../book/pages/explorer.md)", "](/explorer.md)")
            source = re.sub(r"(?<=\]\()[^)\s]*#[^)\s]+", lambda m: with_small_anchor(m.group()), source)
            cells.append(cell | {"source": link_names(source, names)})
        elif is_shown(cell):
            source = re.sub(r"^\s*#\|.*\n?", "", source, flags=re.M)
            metadata = {"tags": [*cell["metadata"].get("tags", []), *(["hide-input"] if is_folded(source) else [])]}
            if has_picture(cell):
                metadata["mystnb"] = {"image": {"alt": alternative_text(notebook["cells"], number)}}
            cells.append(cell | {"source": source, "metadata": metadata})
    badge = {"cell_type": "markdown", "id": "download", "metadata": {}, "source": badges(path, repository())}
    return notebook | {"cells": [*cells[:1], badge, *cells[1:]]}


def title_of(notebook: dict[str, Any]) -> tuple[str, str]:
    "The title and the sentence below it."
    text = "".join(notebook["cells"][0]["source"])
    title = re.search(r"^# (.+)$", text, re.M)
    about = re.search(r"^> (.+(?:\n> .+)*)", text, re.M)
    return title.group(1) if title else "", about.group(1).replace("\n> ", " ") if about else ""


def read_notebooks(only: Collection[str] = ()) -> dict[Path, dict[str, Any]]:
    "The notebooks of the book by their path; those named in `only`, such as `nbs/index`, where it names any."
    paths = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    chosen = [p for p in paths if not only or p.relative_to(ROOT).with_suffix("").as_posix() in only]
    return {p.relative_to(ROOT): json.loads(p.read_text()) for p in chosen}


def on_the_site(page: str) -> str:
    "A hand-written page with links to notebooks and pictures as they lie on the site, not as in a clone."
    return re.sub(r"\]\(\.\./\.\./(nbs|results)/", r"](\1/", page)


def lay_out(source: Path, notebooks: dict[Path, dict[str, Any]], modules: dict[str, Path]) -> None:
    "Write everything that Sphinx reads; `modules` are those of the reference."
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "book" / "pages", source)
    for page in source.glob("*.md"):  # their links hold in a clone; on the site pages lie beside `nbs` and `results`
        page.write_text(on_the_site(page.read_text()))
    for name in ("conf.py", "_static"):
        origin = ROOT / "book" / name
        (shutil.copytree if origin.is_dir() else shutil.copy)(origin, source / name)
    copy_mathjax(source / "_static" / "mathjax")
    write_explorer(source / "extra" / "explorer" / "digits.html")
    shutil.copytree(ROOT / "results" / "figures", source / "results" / "figures")
    titles = {path.with_suffix("").as_posix(): title_of(notebook)[0] for path, notebook in notebooks.items()}
    (source / "api").mkdir()
    names = write_reference(source / "api", titles, modules)
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
    "The number that a notebook's name begins with, for the sidebar; a lesson has it in its title."
    found = re.match(r"0*(\d+)_", path.name)
    return f"{found.group(1)} " if found and path.parts[1] != "1_isd" else ""


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


def write_llms(out: Path, notebooks: dict[Path, dict[str, Any]]) -> None:
    "`llms.txt`: what is where on the site, for readers that are programs."
    lines = ["# isd_nb", "", f"> {settings()['description']}", "", "## Pages", ""]
    for path in sorted((ROOT / "book" / "pages").glob("*.md")):
        title, _, text = path.read_text().removeprefix("# ").partition("\n")
        prose = re.sub(r"^ {4}.*$|^:::.*$", "", text, flags=re.M)  # without commands and cards
        lines.append(f"- [{title}]({path.stem}.html): {sentences(prose)[0]}")
    for folder, title, _ in (("", "Start and notation", ""), *PARTS):
        lines += ["", f"## {title}", ""]
        for path, notebook in notebooks.items():
            if path.parent == Path("nbs", folder):
                name, sentence = title_of(notebook)
                lines.append(f"- [{name}]({path.with_suffix('.html').as_posix()}): {sentence}".removesuffix(": "))
    lines += ["", "## For lecturers", "", *(f"- [{name}](course/{name}.html)" for name in COURSE)]
    lines += ["", "## Reference", "", "- [Every public name](api/index.html): by module, with shapes and units."]
    modules = [module for module, path in package_modules().items() if public_names(path)]
    lines += [f"- [isd_nb.{module}](api/{module}.html)" for module in modules]
    (out / "llms.txt").write_text("\n".join(lines) + "\n")


def build(out: Path,  # the folder of the website; it is replaced
          work: Path = ROOT / "_build",  # where Sphinx's sources and its memory lie
          only: Collection[str] = (),  # notebooks such as "nbs/index", for a small site; empty: all
          strict: bool = False,  # whether a warning, such as that of a broken link, is an error
          ) -> None:
    "Lay out the pages, let Sphinx make the site of them, and write `llms.txt`."
    notebooks, source, html = read_notebooks(only), work / "book", work / "html"
    front = set(front_names().values())
    lay_out(source, notebooks, {m: p for m, p in package_modules().items() if not only or m in front})
    shutil.rmtree(html, ignore_errors=True)
    loudness = ["-q", "-W", "--keep-going"] if strict else ["-Q" if only else "-q"]  # a part links to what is left out
    command = [sys.executable, "-m", "sphinx", *loudness, "-b", "html", "-d", work / "doctrees", source, html]
    subprocess.run([str(part) for part in command], check=True)
    write_llms(html, notebooks)
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(html, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "_site")
    parser.add_argument("--only", default="", help="notebooks to build, separated by commas; all by default")
    parser.add_argument("--strict", action="store_true", help="fail on a warning")
    args = parser.parse_args()
    build(args.out.resolve(), only=[name for name in args.only.split(",") if name], strict=args.strict)
    size = sum(p.stat().st_size for p in args.out.rglob("*") if p.is_file()) / 1e6
    print(f"The book is in {args.out} ({size:.0f} MB): open {args.out / 'index.html'}")


if __name__ == "__main__":
    main()
