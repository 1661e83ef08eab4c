"""The book's website: links, pictures and clicks by parsing its pages, the rest in Chromium.

A small part of the site is built here. `make book-test` builds all of it and gives its folder in SITE; then the tests
that need every page run, too.
"""
import base64
import functools
import http.server
import json
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

pytest.importorskip("myst_nb", reason="the website needs Sphinx and myst-nb: pip install 'isd_nb[dev]'")
pytest.importorskip("playwright", reason="playwright is not installed: pip install 'isd_nb[dev]'")
import browser
from playwright.sync_api import BrowserContext, Page, expect

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "book"))
import build  # noqa: E402
import explorer  # noqa: E402
import reference  # noqa: E402

SITE = os.environ.get("SITE")  # the whole site, where it has been built
PART = ("nbs/index", "nbs/1_isd/4_soft_labels")
PAGES = ("index.html", "nbs/1_isd/4_soft_labels.html", "explorer.html", "api/loss.html", "use_the_loss.html")
FOR_THOSE_WHO_DO_NOT_READ_BOOKS = ("train_on_your_folder", "use_the_loss", "explore_any_network")
needs_browser = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium found: run `make browser`")
needs_all = pytest.mark.skipif(not SITE, reason="only a part of the site was built: run `make book-test`")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The folder of the site."
    if SITE:
        return Path(SITE).resolve()
    place = tmp_path_factory.mktemp("site")
    build.build(place / "site", place / "work", PART)
    return place / "site"


# ---- by parsing


@dataclass
class Parsed(HTMLParser):
    "What a page links to, shows and can be linked to."
    path: Path
    links: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # pictures, scripts, style sheets, frames
    pictures: list[str | None] = field(default_factory=list)  # their alternative texts
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {value for key, value in attrs if key in ("id", "name") and value}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        elif tag == "img":
            self.pictures.append(values.get("alt"))
        address = values.get("href" if tag == "link" else "src")
        if tag in ("img", "script", "link", "iframe", "source") and address:
            self.files.append(address)


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Parsed]:
    return {path: Parsed(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def target(page: Path, address: str) -> tuple[Path, str] | None:  # the file and the anchor; None: an address outside
    "Where an address on a page leads to on the disk."
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    return (page.parent / unquote(parts.path)).resolve() if parts.path else page, unquote(parts.fragment)


def test_files_and_pictures_are_there(pages: dict[Path, Parsed]) -> None:
    missing, outside = [], []
    for page in pages.values():
        for address in page.files:
            found = target(page.path, address)
            if found is None:
                outside += [] if address.startswith("data:") else [(page.path.name, address)]
            elif not found[0].is_file():
                missing.append((page.path.name, address))
    assert not missing
    assert not outside, "loaded from elsewhere"


@needs_all
def test_internal_links_lead_somewhere(pages: dict[Path, Parsed]) -> None:
    broken = []
    for page in pages.values():
        for address in page.links:
            found = target(page.path, address)
            if found is None or not address.strip("#"):
                continue
            file, anchor = found
            if not file.exists() or (anchor and file in pages and anchor not in pages[file].anchors):
                broken.append((str(page.path.name), address))
    assert not broken


def test_pictures_have_alternative_texts(pages: dict[Path, Parsed]) -> None:
    poor = [(page.path.name, alt) for page in pages.values() for alt in page.pictures
            if not alt or len(alt) < 15 or alt.endswith((".png", ".svg", ":"))]
    assert not poor


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda p: p.stem)
def test_figures_of_notebooks_get_alternative_texts(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    drawn = [i for i, cell in enumerate(cells) if cell["cell_type"] == "code" and build.has_picture(cell)]
    mute = [cells[i]["id"] for i in drawn if len(build.alternative_text(cells, i)) < 25]
    assert not mute, "a figure needs a title, a sentence before or after it, or a line `#| fig-alt: ...` in its cell"


def test_a_notebook_is_opened_elsewhere_once_the_repository_has_an_address() -> None:
    page = Path("nbs/1_isd/6_isd.ipynb")
    assert build.badges(page, "") == "{download}`Download this notebook </downloads/nbs/1_isd/6_isd.ipynb>`"
    _, colab, edit = build.badges(page, "me/mine").split(" · ")
    assert colab == "[Open in Colab](https://colab.research.google.com/github/me/mine/blob/main/nbs/1_isd/6_isd.ipynb)"
    assert edit == "[Edit on GitHub](https://github.com/me/mine/edit/main/nbs/1_isd/6_isd.ipynb)"


def test_a_cell_may_state_its_alternative_text() -> None:
    def cell(kind: str, text: str) -> dict:
        return dict(cell_type=kind, source=text)
    drawing = cell("code", "ax.set(title='A dip, then a rise')\nplt.show()")
    mute, before = cell("code", "draw()"), cell("markdown", "Why. We draw [it](x.ipynb).")
    after, heading = cell("markdown", "It *falls* first. Then it rises."), cell("markdown", "## Next")
    assert build.alternative_text([before, drawing, after], 1) == "Figure: A dip, then a rise"
    assert build.alternative_text([before, mute, after], 1) == "Figure: It falls first."
    assert build.alternative_text([before, mute, heading], 1) == "Figure: We draw it."
    assert build.alternative_text([cell("code", "#| fig-alt: A curve.\n" + drawing["source"])], 0) == "A curve."
    assert build.alternative_text([mute], 0) == ""


def clicks(start: Path, neighbours: dict[Path, set[Path]]) -> dict[Path, int]:
    "How many clicks each page is away from the first, by a breadth-first walk."
    seen, waiting = {start: 0}, deque([start])
    while waiting:
        page = waiting.popleft()
        for other in neighbours.get(page, set()) - seen.keys():
            seen[other] = seen[page] + 1
            waiting.append(other)
    return seen


def source_links(path: Path) -> set[Path]:
    "The pages and notebooks that a page or a notebook links to."
    text = path.read_text()
    if path.suffix == ".ipynb":
        text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    found = [path.parent / link for link in re.findall(r"\]\(([^)#\s]+\.(?:md|ipynb))", text) if "://" not in link]
    pages = ROOT / "book" / "pages"
    for card in re.findall(r"^:link: (\S+)$", text, re.M):
        found += [pages / f"{card}.md", ROOT / f"{card}.ipynb"]
    return {p.resolve() for p in found if p.exists()}


@pytest.mark.parametrize("page", sorted(p.name for p in (ROOT / "book/pages").glob("*.md")))
def test_links_of_a_hand_written_page_lead_somewhere_in_a_clone(page: str) -> None:
    path = ROOT / "book/pages" / page
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", path.read_text()) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]


@pytest.mark.parametrize("start", [ROOT / "README.md", ROOT / "book/pages/index.md"], ids=lambda p: p.name)
def test_three_clicks_lead_to_ones_own_images_and_code(start: Path) -> None:
    sources = [ROOT / "README.md", *(ROOT / "book/pages").glob("*.md"), *(ROOT / "nbs").rglob("*.ipynb")]
    away = clicks(start, {p: source_links(p) for p in sources})
    for name in (*FOR_THOSE_WHO_DO_NOT_READ_BOOKS, "explorer", "install"):
        assert away.get(ROOT / f"book/pages/{name}.md", 99) <= 3, f"{name} is not within three clicks of {start.name}"


@needs_all
def test_three_clicks_on_the_site(site: Path, pages: dict[Path, Parsed]) -> None:
    leads = {path: {found[0] for link in page.links if (found := target(path, link))} for path, page in pages.items()}
    away = clicks(site / "index.html", leads)
    for name in (*FOR_THOSE_WHO_DO_NOT_READ_BOOKS, "explorer", "nbs/notation", "api/index"):
        assert away.get(site / f"{name}.html", 99) <= 3
    lost = {p.relative_to(site).as_posix() for p in pages.keys() - away.keys()}
    assert lost <= {"search.html", "genindex.html", "explorer/digits.html"}, "pages to which no link leads"


def test_llms_txt_lists_what_is_there(site: Path) -> None:
    text = (site / "llms.txt").read_text()
    links = re.findall(r"^- \[.+\]\((\S+\.html)\)", text, re.M)
    assert len(links) > (120 if SITE else 15) and text.startswith("# isd_nb\n\n> ")
    for name in (*FOR_THOSE_WHO_DO_NOT_READ_BOOKS, "api/index", "nbs/1_isd/4_soft_labels"):
        assert f"{name}.html" in links
    here = [link for link in links if SITE or not link.startswith("api/")]
    assert not [link for link in here if not (site / link).is_file()]


def test_the_explorer_of_the_site_holds_the_shipped_encoders(site: Path) -> None:
    text, static = (site / "explorer/digits.html").read_text(), reference.PACKAGE / "explore/static"
    for name in ("contours.js", "explorer.js", "explorer.css"):
        assert (static / name).read_text().replace("export default { render, mount };", "") in text
    stated = re.search(r"one file of (\S+) MB", (ROOT / "book/pages/explorer.md").read_text())
    assert stated and f"{len(text.encode()) / 1e6:.1f}" == stated[1]
    header, data = (re.search(rf'id="{name}">(.*?)</script>', text, re.S).group(1) for name in ("header", "data"))
    index = json.loads(header)["arrays"]["features"]
    kept = np.frombuffer(base64.b64decode(data), "<i2", index["length"], index["offset"])
    places = {(name, 7812): np.zeros((500, 2)) for name in ("teacher", "student")}
    computed = explorer.shipped_gallery(places=places).features
    now = np.stack([computed["teacher", 7812], computed["student", 7812]]) * 32767
    assert np.abs(kept.reshape(now.reshape(2, 500, -1).shape) - now).max() < 40


# ---- in Chromium


@dataclass
class Visit:
    "A page in Chromium, and what it asked for and complained about."
    page: Page
    base: str
    outside: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, address: str, width: int = 1400) -> Page:
        self.outside.clear()
        self.complaints.clear()
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.goto(self.base + address, wait_until="load")
        return self.page


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        "Requests are not printed."


@pytest.fixture(scope="module")
def visit(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with browser.chromium(tmp_path_factory.mktemp("profile")) as context:
        yield begin(context, f"http://127.0.0.1:{server.server_port}/")
    server.shutdown()
    server.server_close()


def begin(context: BrowserContext, base: str) -> Visit:
    "A window that records requests to other hosts, errors of the console and of scripts, and files that are missing."
    new = Visit(context.new_page(), base)
    inside = (base, "data:", "blob:", "about:")
    new.page.on("request", lambda r: None if r.url.startswith(inside) else new.outside.append(r.url))
    new.page.on("console", lambda m: new.complaints.append(m.text) if m.type == "error" else None)
    new.page.on("pageerror", lambda error: new.complaints.append(str(error)))
    new.page.on("response", lambda r: new.complaints.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    return new


@needs_browser
@pytest.mark.parametrize("address", PAGES)
def test_nothing_is_asked_from_outside_and_nothing_fails(visit: Visit, address: str) -> None:
    visit.open(address)
    assert not visit.outside
    assert not visit.complaints


@needs_browser
def test_the_search_finds_soft_labels(visit: Visit) -> None:
    page = visit.open("search.html?q=soft+label")
    found = page.locator("#search-results li a").first
    found.wait_for()
    assert "soft label" in " ".join(page.locator("#search-results li").all_inner_texts()).lower()
    assert "Lesson 4: soft labels" in page.locator("#search-results li a").all_inner_texts()
    assert not visit.outside and not visit.complaints


@needs_browser
def test_formulas_are_rendered(visit: Visit) -> None:
    page = visit.open("nbs/1_isd/4_soft_labels.html")
    page.locator("mjx-container").first.wait_for()
    page.wait_for_function("[...document.querySelectorAll('.math')].every(m => m.querySelector('mjx-container'))")
    assert page.locator("mjx-container").count() > 5
    assert page.locator("mjx-merror").count() == 0
    assert not visit.outside and not visit.complaints


@needs_browser
def test_the_explorer_answers_a_click_and_a_key(visit: Visit) -> None:
    page = visit.open("explorer.html")
    page.locator("iframe.explorer").scroll_into_view_if_needed()
    frame = page.frame_locator("iframe.explorer")
    root = frame.locator(".isd-explorer[data-state=ready]")
    root.wait_for()
    number = frame.locator("[name=query]")
    assert number.input_value() == "0"
    neighbour = frame.locator(".isd-grid button").nth(2)
    neighbour.click()
    expect(number).not_to_have_value("0", timeout=1000 * browser.PATIENCE)
    root.wait_for()
    following = (int(number.input_value()) + 1) % 500
    frame.locator("canvas.isd-map").press(".")  # the next image
    expect(number).to_have_value(str(following), timeout=1000 * browser.PATIENCE)
    assert not visit.outside and not visit.complaints


@needs_browser
@pytest.mark.parametrize("width", [1400, 820, 390])
def test_the_frame_of_the_explorer_is_as_high_as_what_it_shows(visit: Visit, width: int) -> None:
    page = visit.open("explorer.html", width)
    page.locator("iframe.explorer").scroll_into_view_if_needed()
    frame = page.frame_locator("iframe.explorer")
    for encoders in ("teacher", "teacher | student", "teacher"):  # one column of neighbours or two
        frame.locator("select").first.select_option(encoders)
        frame.locator(".isd-explorer[data-state=ready] .isd-hard").wait_for()
        page.wait_for_function("""() => { const root = document.querySelector("iframe.explorer").contentDocument;
            const bottom = root.querySelector(".isd-explorer").getBoundingClientRect().bottom;
            const free = root.defaultView.innerHeight - bottom;
            return free > -1 && free < 20; }""")
    assert not visit.outside and not visit.complaints


@needs_browser
def test_on_a_phone_printed_tables_keep_their_lines(visit: Visit) -> None:
    page = visit.open("nbs/1_isd/4_soft_labels.html", 390)
    wraps = "pre => getComputedStyle(pre).whiteSpace"
    assert page.locator(".cell_output div.highlight pre").first.evaluate(wraps) == "pre"
    assert page.locator(".cell_input div.highlight pre").first.evaluate(wraps) == "pre-wrap"


@needs_browser
def test_a_phone_scrolls_no_page_sideways(visit: Visit, site: Path, pages: dict[Path, Parsed]) -> None:
    addresses = [p.relative_to(site).as_posix() for p in pages if p.name != "genindex.html"] if SITE else PAGES
    wide = {}
    for address in addresses:
        width = visit.open(address, 390).evaluate("document.documentElement.scrollWidth")
        wide |= {address: width} if width > 390 else {}
    assert not wide
