"""Builds the lecture's slides: one HTML file without a network, from course/lecture.md and marked cells.

    python course/slides.py [--out _slides]

A slide is a piece of `lecture.md`: a heading `## Title (2 min)`, Markdown with formulas, and after a line that begins
with `Notes:` what the lecturer wants to remember. On a line of its own stands what comes from elsewhere:

    {figure: ring}     the picture that the cell with the tag `slide-ring` left behind
    {printed: ring}    what that cell printed
    {code: ring}       its source
    {formula: ring}    the first displayed formula of a Markdown cell with that tag
    {table: digits}    a table of README.md, made anew from results/

Nothing on a slide that was measured is typed in by hand.
"""

import argparse
import base64
import html
import importlib.util
import json
import re
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).parent.parent
COURSE, RESULTS = ROOT / "course", ROOT / "results"
sys.path.append(str(ROOT / "benchmarks"))
import readme  # noqa: E402  the tables of README.md

MARK = "slide-"  # how the tag of a marked cell begins
LEFT_OUT = re.compile(r"\byield\b|\bschedule\b|manual_seed\(|teacher\.momentum = ")  # lines of code that no slide shows
DETAILS = re.compile(r", generator=g|, g(?=\))|, nesterov=True, weight_decay=[\w.-]+")  # and parts of lines
SHOWN = {"trained with labels", "SwAV", "SimCLR", "MoCo v2", "**ISD**", "BYOL-asym", "raw pixels", "untrained net",
         "", "---"}  # rows of the table of methods that a slide shows
COLUMNS = {"", "20-NN", "linear", "1% of the labels"}  # and its columns
WIDE = 1.5  # a figure of at least this width / height stands below the text, a narrower one beside it


@dataclass(frozen=True)
class Slide:
    "A piece of the deck's source."
    title: str
    minutes: float
    body: str  # Markdown with directives
    notes: str  # Markdown


def marked_cells(root: Path = ROOT / "nbs") -> dict[str, dict[str, Any]]:  # by name, without `slide-`
    "All cells of the book that are marked for slides."
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(p for p in root.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts):
        for cell in json.loads(path.read_text())["cells"]:
            for tag in cell["metadata"].get("tags", []):
                if tag.startswith(MARK):
                    if tag in found:
                        raise SystemExit(f"two cells have the tag {tag}, one of them in {path}")
                    found[tag] = cell
    return {tag.removeprefix(MARK): cell for tag, cell in found.items()}


def read_deck(text: str) -> Iterator[Slide]:
    "The slides of a deck's source, which are separated by lines of three dashes."
    for part in re.split(r"^---$", text, flags=re.M):
        head = re.match(r"\s*## (.+?)(?: \(([\d.]+) min\))?\n", part)
        if not head:
            raise SystemExit(f"a slide begins with `## Title (2 min)`, not with {part.strip()[:60]!r}")
        body, _, notes = part[head.end():].partition("\nNotes:")
        yield Slide(head[1], float(head[2] or 0), body.strip(), notes.strip())


def source_of(cell: dict[str, Any]) -> str:
    return re.sub(r"^\s*#\|.*\n?", "", "".join(cell["source"]), flags=re.M)


def picture_of(cell: dict[str, Any]) -> bytes:
    "The last PNG that a cell left behind."
    pictures = [o["data"]["image/png"] for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    if not pictures:
        raise SystemExit(f"the cell {cell['id']} is marked as a figure and shows none: execute its page")
    return base64.b64decode("".join(pictures[-1]))


def printed_by(cell: dict[str, Any]) -> str:
    "The text that a cell printed or returned."
    texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.get("outputs", [])]
    return "".join("".join(t) for t in texts).strip()


def figure_size(png: bytes) -> tuple[int, int]:
    "Width and height in pixels, from the header of a PNG."
    return struct.unpack(">II", png[16:24])


def as_figure(cell: dict[str, Any], title: str) -> str:
    png = picture_of(cell)
    width, height = figure_size(png)
    data = base64.b64encode(png).decode()
    return (f'<figure class="{"wide" if width >= WIDE * height else "narrow"}" '
            f'style="--width: {width}; --height: {height}">'
            f'<img src="data:image/png;base64,{data}" alt="{html.escape(title, quote=True)}"></figure>')


def essentials(source: str) -> str:
    "A training loop without schedules, weight decay, seeds and measuring: what one slide holds."
    lines = [line for line in source.splitlines() if not LEFT_OUT.search(line)]
    text = DETAILS.sub("", "\n".join(lines))
    return text.replace("build(momentum[0])", "build(momentum)").replace("momentum=(0.9, 0.9)", "momentum=0.9")


def as_code(cell: dict[str, Any]) -> str:
    return highlight(essentials(source_of(cell)), PythonLexer(), HtmlFormatter(cssclass="code", noclasses=False))


def as_formula(cell: dict[str, Any]) -> str:
    found = re.search(r"\$\$(.+?)\$\$", source_of(cell), re.S)
    if not found:
        raise SystemExit(f"the cell {cell['id']} is marked for a formula and has none between $$ and $$")
    text = re.sub(r"\\(begin|end)\{gathered\}", "", found[1].strip())
    parts = re.split(r",\s*(?:\\qquad|\\\\\[\w+\])", text)  # a page has them below each other where phones need it
    lines = [r",\qquad ".join(parts[:-1]), parts[-1]] if len(parts) > 2 else [r",\qquad ".join(parts)]
    text = r"\\[12pt]".join(lines)  # three formulas in a row are wider than a slide
    return f'<div class="formula">\\[\\begin{{gathered}}{html.escape(text)}\\end{{gathered}}\\]</div>'


def shortened(table: str) -> str:
    "The rows and columns of the table of methods that can be read from the last row of seats."
    lines = table.splitlines()
    rows, note = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")], lines[-1]
    kept = [i for i, title in enumerate(rows[0]) if title in COLUMNS]
    chosen = [[row[i] for i in kept] for row in rows if row[0] in SHOWN]
    text = "\n".join(f"| {' | '.join(row)} |" for row in chosen)
    return f"{text}\n\n{len(chosen) - 2} of {len(rows) - 2} rows. {note}"


def as_table(name: str) -> str:
    "A table of README.md as HTML, with its command below."
    if name not in readme.BLOCKS:
        raise SystemExit(f"README.md has no table {name!r}; it has {', '.join(readme.BLOCKS)}")
    table = readme.BLOCKS[name](RESULTS)
    table = shortened(table) if name == "methods-digits" else table
    return f'<div class="table {name}">{markdown().render(table)}</div>'


def markdown() -> MarkdownIt:
    "Markdown with tables and formulas; formulas are left to MathJax."
    def formula(text: str, options: dict[str, Any]) -> str:
        return f"\\[{html.escape(text)}\\]" if options["display_mode"] else f"\\({html.escape(text)}\\)"
    return MarkdownIt("commonmark", {"html": True}).enable("table").use(dollarmath_plugin, renderer=formula)


def rendered(slide: Slide, cells: dict[str, dict[str, Any]]) -> str:
    "The body of a slide as HTML."
    makers: dict[str, Callable[[str], str]] = {
        "figure": lambda name: as_figure(cells[name], slide.title),
        "printed": lambda name: f'<pre class="printed">{html.escape(printed_by(cells[name]))}</pre>',
        "code": lambda name: as_code(cells[name]), "formula": lambda name: as_formula(cells[name]), "table": as_table}
    blocks: list[str] = []

    def directive(match: re.Match) -> str:
        kind, name = match.groups()
        if kind not in makers or (kind != "table" and name not in cells):
            raise SystemExit(f"{slide.title!r}: {match[0]} names no {kind} of the book; cells are marked with the tag "
                             f"{MARK}{name}")
        blocks.append(makers[kind](name))
        return f"\n<!--block {len(blocks) - 1}-->\n"

    page = markdown().render(re.sub(r"^\{(\w+): ([\w-]+)\}$", directive, slide.body, flags=re.M))
    return re.sub(r"<!--block (\d+)-->", lambda m: blocks[int(m[1])], page)


def as_section(slide: Slide, number: int, start: float, cells: dict[str, dict[str, Any]]) -> str:
    "One slide, with its notes and the minutes at which it is due."
    body = rendered(slide, cells)
    text = re.sub(r"<figure.*?</figure>", "", body)
    beside = body.count("<figure") == 1 and 'class="narrow"' in body and text.strip()
    words = not re.search(r"<(figure|svg|table)|class=\"code\"", body)
    kind = "title" if number == 1 else "beside" if beside else "words" if words else "below"
    if beside:
        body = f'<div class="text">{text}</div>{re.search(r"<figure.*?</figure>", body)[0]}'
    due = f"<b>Minutes {start:g} to {start + slide.minutes:g}.</b> " if slide.minutes else ""
    heading = "h1" if number == 1 else "h2"
    notes = markdown().render(due + slide.notes)
    return (f'<section id="{number}" class="{kind}"><{heading}>{markdown().renderInline(slide.title)}</{heading}>'
            f'<div class="body">{body}</div><aside>{notes}</aside><footer>{number}</footer></section>')


def mathjax() -> str:
    "MathJax that draws with paths and needs no fonts, from the package that brings it."
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise SystemExit("formulas need the package sphinx-mathjax-offline: pip install 'isd_nb[dev]'")
    return (Path(spec.origin).parent / "static" / "mathjax" / "tex-svg.js").read_text()


def build_page(deck: str) -> str:  # the source, as in lecture.md -> one HTML file
    "All slides on one page with everything that they need."
    cells, start, sections = marked_cells(), 0.0, []
    slides = list(read_deck(deck))
    for i, slide in enumerate(slides, 1):
        sections.append(as_section(slide, i, start, cells))
        start += slide.minutes
    colours = HtmlFormatter(style="friendly").get_style_defs(".code")
    parts = {"TITLE": html.escape(slides[0].title), "STYLE": (COURSE / "slides.css").read_text() + colours,
             "SECTIONS": "\n".join(sections), "SCRIPT": (COURSE / "slides.js").read_text(), "MATHJAX": mathjax()}
    page = (COURSE / "slides.html").read_text()
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]].replace("</script", "<\\/script"), page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "_slides")
    out = parser.parse_args().out.resolve()
    deck = (COURSE / "lecture.md").read_text()
    page = build_page(deck)
    out.mkdir(parents=True, exist_ok=True)
    (out / "lecture.html").write_text(page)
    minutes = sum(slide.minutes for slide in read_deck(deck))
    print(f"{len(list(read_deck(deck)))} slides for {minutes:g} minutes ({len(page) / 1e6:.1f} MB): "
          f"open {out / 'lecture.html'}; keys: arrows, N for notes, F for full screen")


if __name__ == "__main__":
    main()
