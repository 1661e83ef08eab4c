"""The explorer under a real mouse: in JupyterLab, where the kernel answers, and as one HTML file, where the page does;
the start page's live run, an exercise, and the slides.

One Chromium and one JupyterLab serve all tests. Every expected number is computed here, in float64 and
from the features, not by the code under test. Images, names and places are made up, so that each point stands alone on
the map. `tests/switch_off.py` switches each feature of the page off, one at a time, and checks that its test fails.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isd_nb.data import ImageSet

sys.path.append(str(Path(__file__).parent.parent / "course"))
pytest.importorskip("playwright", reason="playwright is not installed: pip install 'isd_nb[dev]'")
pytest.importorskip("anywidget", reason="anywidget is not installed: pip install 'isd_nb[explore]'")
import browser
import slides
from handouts import write_handouts
from test_exercises import read_page

from isd_nb.explore.explorer import Explorer, other_views
from isd_nb.explore.gallery import Gallery, digest, gallery_of, run_files, run_images, write_cache
from isd_nb.engine.training import train
from isd_nb.recipe import Recipe
from isd_nb.views import GENTLE
from playwright.sync_api import BrowserContext, Page, TimeoutError, expect

ROOT = Path(__file__).parent.parent
LESSONS = sorted((ROOT / "nbs" / "1_isd").glob("*.ipynb"))
pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium found: run `make browser`")

NAMES = (
    "<img src=x onerror=window.broken=1>",
    "\"quoted\" & 'single'",
    "</script><script>window.broken=1</script>",
    "plain",
)
ENCODERS, STEPS, N, ZOOM, SIZE = ("teacher", "student"), (0, 10, 20), 144, 0.92, 12


def made_up(n: int = N) -> Gallery:
    "Random images on a 12 x 12 grid that is shuffled from step to step; features that lean towards their class."
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(NAMES), n)
    files = tuple(Path(f"<b onclick='x'>{i}.png") for i in range(n))
    images = ImageSet(
        torch.from_numpy(rng.integers(0, 256, (n, 3, SIZE, SIZE), dtype=np.uint8)),
        torch.from_numpy(labels),
        NAMES,
        files,
    )
    grid = np.stack(np.meshgrid(np.arange(12), np.arange(12)), -1).reshape(-1, 2)[:n].astype(np.float32)
    moments = [(e, s) for e in ENCODERS for s in STEPS]
    middles = rng.normal(size=(len(NAMES), 9))
    features = {m: torch.from_numpy(0.5 * middles[labels] + rng.normal(size=(n, 9))).float() for m in moments}
    places = {m: grid[rng.permutation(n)] for m in moments}
    return gallery_of(images, features, places, temperature=0.1, title="<i>made up", views=GENTLE, encode=encode)


def encode(moment: tuple[str, int], pixels: torch.Tensor) -> torch.Tensor:  # uint8 (1, 3, SIZE, SIZE) -> (9,)
    "Features of any image: the means of nine of its parts, turned by the moment."
    parts = pixels.float().mean(1).unfold(1, 4, 4).unfold(2, 4, 4).mean((-1, -2)).flatten() - 127
    return parts.roll(STEPS.index(moment[1]) + 3 * ENCODERS.index(moment[0]))


GALLERY = made_up()


def expected(
    encoder: str, step: int, query: int, temperature: float
) -> tuple[list[int], np.ndarray, np.ndarray, float]:
    "Neighbours, their shares, the shares of the classes and the entropy, as a textbook would."
    features = np.asarray(GALLERY.features[encoder, step], dtype=np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    cosines = features @ features[query]
    weights = np.exp(cosines / temperature)
    weights[query] = 0
    share = weights / weights.sum()
    by_class = np.array([share[GALLERY.images.labels.numpy() == c].sum() for c in range(len(NAMES))])
    order = [i for i in np.argsort(-cosines, kind="stable") if i != query]
    kept = share[share > 0]
    return order, share[order], by_class, float(-(kept * np.log(kept)).sum())


def unit_places(encoder: str, step: int) -> np.ndarray:  # (N, 2) in [-1, 1]: the grid is 11 wide
    return (np.asarray(GALLERY.places[encoder, step]) - 5.5) / 5.5


@dataclass
class Window:
    "An open explorer, and what its page asked for and complained about."

    page: Page
    requests: list[str]
    complaints: list[str]

    @property
    def root(self):
        return self.page.locator(".isd-explorer").first

    def control(self, name: str):
        return self.root.locator(f"[name={name}]")

    def ready(self, **values: object) -> None:
        "Wait until the panel has drawn an answer to this query, step or encoder."
        wanted = "".join(f"[data-{k}='{v}']" for k, v in {"state": "ready", "gliding": "no", **values}.items())
        self.page.wait_for_selector(f".isd-explorer{wanted}")

    def reset(self) -> None:
        "The state that every test starts from."
        self.control("encoder").select_option("teacher")
        self.control("colour").select_option(index=0)
        self.root.get_by_role("button", name="Show the whole map").or_(
            self.root.get_by_title("Show the whole map")
        ).click()
        self.control("step").press("End")
        self.set_range("temperature", -1.0)
        self.choose(0)
        self.ready(query=0, step=20, encoder="teacher")

    def choose(self, index: int) -> None:
        self.control("query").fill(str(index))

    def set_range(self, name: str, value: float) -> None:
        "What dragging does, without counting pixels."
        self.control(name).evaluate(
            "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})) }", value
        )

    def on_screen(self, places: np.ndarray) -> list[tuple[float, float]]:  # (M, 2) in [-1, 1]
        "Where these places must be on the screen when the whole map is shown."
        self.root.locator(".isd-map").scroll_into_view_if_needed()
        box = self.root.locator(".isd-map").bounding_box()
        side = ZOOM * min(box["width"], box["height"]) / 2
        return [
            (box["x"] + box["width"] / 2 + x * side, box["y"] + box["height"] / 2 - y * side)
            for x, y in places.tolist()
        ]

    def at(self, index: int, encoder: str = "teacher", step: int = 20) -> tuple[float, float]:
        return self.on_screen(unit_places(encoder, step)[[index]])[0]

    def neighbours(self, encoder: str = "teacher") -> list[int]:
        found = self.root.locator(f".isd-encoder[data-encoder={encoder}] .isd-grid button")
        return [int(i) for i in found.evaluate_all("all => all.map(e => e.dataset.index)")]

    def pixels(self, canvas) -> np.ndarray:  # uint8 (SIZE, SIZE, 3)
        "What a thumbnail shows, once it is drawn."
        drawn = canvas.and_(self.page.locator("[data-drawn=yes]")).first
        drawn.wait_for()
        found = drawn.evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
        return np.array(found).reshape(SIZE, SIZE, 4)[..., :3]

    def in_kernel(self, code: str) -> str:  # what it prints
        return self.page.evaluate(
            """async code => {
            const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const asked = kernel.requestExecute({ code, store_history: false });
            let text = "";
            asked.onIOPub = m => { if (m.header.msg_type === "stream") text += m.content.text; };
            await asked.done;
            return text; }""",
            code,
        )

    def ink(self, index: int) -> tuple[int, int, int]:
        "The colour in the middle of a point."
        x, y = self.at(index)
        self.page.mouse.move(1, 1)
        return Image.open(BytesIO(self.page.screenshot())).convert("RGB").getpixel((round(x), round(y)))

    def bars(self) -> dict[int, float]:
        lines = self.root.locator(".isd-soft .isd-line")
        return {
            int(c): float(s) for c, s in lines.evaluate_all("all => all.map(e => [e.dataset.class, e.dataset.share])")
        }

    def drawn(self, step: int) -> np.ndarray:  # bool (N,)
        "Which images have ink at their place, in a screenshot of the map."
        self.page.mouse.move(1, 1)
        picture = np.asarray(Image.open(BytesIO(self.page.screenshot())).convert("L")).astype(int)
        places = self.on_screen(unit_places("teacher", step))
        return np.array(
            [picture[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2].min() < 225 for x, y in places]
        )


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    with browser.chromium(tmp_path_factory.mktemp("chromium")) as context:
        yield context


def opened(context: BrowserContext, address: str, script: str = "") -> Window:
    page, requests, complaints = context.new_page(), [], []
    page.on("request", lambda r: requests.append(r.url))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    if script:
        page.add_init_script(script)
    page.goto(address)
    return Window(page, requests, complaints)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:  # file -> its address
    "A JupyterLab, started by `isd_explore`, with an explorer, that of a run, the start page, lessons and handouts."
    home = tmp_path_factory.mktemp("lab")
    source = (
        f"import sys\nsys.path[:0] = [{str(Path(__file__).parent)!r}]\nfrom test_browser import GALLERY, Explorer\n"
        # thumbnails as strips, as of a large set
        "import isd_nb.explore.page_data\nisd_nb.explore.page_data.sheets = lambda *_: {}\n"
        "explorer = Explorer(GALLERY)\nexplorer"
    )
    cell = dict(cell_type="code", id="one", metadata={}, execution_count=None, outputs=[], source=source)
    spec = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    (home / "try.ipynb").write_text(json.dumps(dict(cells=[cell], metadata=spec, nbformat=4, nbformat_minor=5)))
    (home / "index.ipynb").write_text(json.dumps(cleared(json.loads((ROOT / "nbs" / "index.ipynb").read_text()))))
    write_handouts(home / "handouts")
    (home / "results").symlink_to(ROOT / "results")
    (home / "nbs" / "1_isd").mkdir(parents=True)
    for lesson in LESSONS:
        (home / lesson.relative_to(ROOT)).write_text(json.dumps(cleared(json.loads(lesson.read_text()))))
    command = [sys.executable, "-c", "from isd_nb.cli.explore import isd_explore; isd_explore()"]
    command += [str(explored_run(home)), "--", f"--ServerApp.root_dir={home}"]
    with browser.jupyterlab(home, command) as address:
        yield address


def explored_run(home: Path) -> Path:
    "A run on images of classes with strange names, whose features and layouts are there already."
    rng, folder, run = np.random.default_rng(0), home / "images", home / "run"
    for name, i in product(("a<b>", "b"), range(20)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    recipe = Recipe("tiny", data=f"folder:{folder}", batch_size=8, queue_size=32, width=4, steps=2, evaluations=1)
    train(recipe, images := run_images(recipe, None, "data", 99), run, device="cpu", show=False)
    files = run_files(run, 8)
    moments = {(e, s): torch.randn(len(images), 5) for e in ENCODERS for s in files}
    places = {m: rng.random((len(images), 2), dtype=np.float32) for m in moments}
    write_cache(run / "explorer", digest(run, files, images), gallery_of(images, moments, places))
    return run


def cleared(notebook: dict) -> dict:
    "The same notebook before it was run."
    return notebook | {"cells": [c | ({"outputs": []} if c["cell_type"] == "code" else {}) for c in notebook["cells"]]}


@pytest.fixture(scope="module", params=["file", "jupyter"])
def home(
    request: pytest.FixtureRequest, chromium: BrowserContext, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Window]:
    "The same explorer, as a file and in JupyterLab."
    if request.param == "file":
        path = Explorer(GALLERY).html(tmp_path_factory.mktemp("file") / "made up.html")
        window = opened(chromium, path.as_uri())
    else:
        window = opened(chromium, request.getfixturevalue("lab")("try.ipynb"))
        browser.wait_for_kernel(window.page)
        browser.run_all_cells(window.page)
    window.page.wait_for_selector(".isd-explorer[data-state=ready]")
    yield window
    window.page.close()


@pytest.fixture
def window(home: Window) -> Window:
    home.reset()
    return home


# What the page does by itself, and in the same way in JupyterLab; there it is asked what a kernel, widgets and
# JupyterLab's own keys have to do with.
page_alone = pytest.mark.parametrize("home", ["file"], indirect=True, scope="module")
with_kernel = pytest.mark.parametrize("home", ["jupyter"], indirect=True, scope="module")


def test_a_click_shows_the_neighbours_of_that_image(window: Window) -> None:
    for image in (17, 101):
        window.page.mouse.click(*window.at(image))
        window.ready(query=image)
        assert window.neighbours() == expected("teacher", 20, image, 0.1)[0][:12]
        assert f"image {image}" in window.root.locator(".isd-query").inner_text()


@page_alone
def test_other_buttons_of_the_mouse_choose_and_move_nothing(window: Window) -> None:
    before = window.root.evaluate("r => r.explorer.project(40)")
    for button in ("right", "middle"):
        window.page.mouse.click(*window.at(40), button=button)
        window.page.mouse.down(button=button)
        window.page.mouse.move(*window.at(30), steps=3)
        window.page.mouse.up(button=button)
    assert window.root.evaluate("r => [r.explorer.state.query, r.explorer.project(40)]") == [0, before]


def test_a_click_on_a_neighbour_makes_it_the_query(window: Window) -> None:
    first = window.neighbours()[0]
    window.root.locator(".isd-grid button").first.click()
    window.ready(query=first)
    assert window.neighbours() == expected("teacher", 20, first, 0.1)[0][:12]


def test_hover_shows_the_thumbnail_of_that_image(window: Window) -> None:
    for image in (5, 77):
        window.page.mouse.move(*window.at(image))
        shown = window.pixels(window.root.locator(f".isd-hover canvas[data-index='{image}']"))
        np.testing.assert_array_equal(shown, GALLERY.images[image].permute(1, 2, 0).numpy())


def test_neighbours_and_query_show_their_pictures(window: Window) -> None:
    for image in (0, *window.neighbours()[:3]):
        shown = window.pixels(window.root.locator(f".isd-panel canvas[data-kind=image][data-index='{image}']"))
        np.testing.assert_array_equal(shown, GALLERY.images[image].permute(1, 2, 0).numpy())
    same = GALLERY.images.labels[window.neighbours()] == GALLERY.images.labels[0]
    marks = window.root.locator(".isd-grid button span:nth-of-type(1)").all_inner_texts()
    assert [mark[0] == "\u2713" for mark in marks] == same.tolist() and 0 < same.sum() < len(same)


def test_moco_says_that_only_the_other_view_is_similar(window: Window) -> None:
    shown = window.pixels(window.root.locator(".isd-hard canvas[data-kind=other][data-index='0']"))
    view = other_views(GALLERY, torch.tensor([0]))[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(shown, view)
    assert (view != GALLERY.images[0].permute(1, 2, 0).numpy()).any()
    assert window.root.locator(".isd-hard .isd-value").all_inner_texts() == ["100%", "0%"]
    assert window.root.locator(".isd-grid .isd-moco").all_inner_texts() == ["MoCo 0%"] * 12
    assert "MoCo's label" in window.root.locator(".isd-grid .isd-moco").first.get_attribute("title")
    share = expected("teacher", 20, 0, 0.1)[1][0]
    assert window.root.locator(".isd-grid .isd-isd").first.inner_text() in (f"ISD {share:.0%}", f"ISD {share:.1%}")


def test_the_step_slider_glides_to_the_stored_layout(window: Window) -> None:
    np.testing.assert_allclose(
        window.root.evaluate("r => [...r.explorer.places('teacher')]"), unit_places("teacher", 20).flatten(), atol=1e-4
    )
    watched = """r => new Promise(done => {
      const seen = [], look = () => { seen.push(r.explorer.places('teacher')[0]);
        if (r.dataset.gliding === 'no' && seen.length > 1) done(seen); else requestAnimationFrame(look); };
      const s = r.querySelector('[name=step]'); s.value = 0; s.dispatchEvent(new Event('input')); look(); })"""
    seen = window.root.evaluate(watched)
    start, end = unit_places("teacher", 20)[0, 0], unit_places("teacher", 0)[0, 0]
    between = [x for x in seen if min(start, end) + 1e-3 < x < max(start, end) - 1e-3]
    assert between, "the point jumped instead of gliding"  # a busy machine shows few of the places on its way
    window.ready(step=0)
    np.testing.assert_allclose(
        window.root.evaluate("r => [...r.explorer.places('teacher')]"), unit_places("teacher", 0).flatten(), atol=1e-4
    )
    assert window.neighbours() == expected("teacher", 0, 0, 0.1)[0][:12]


@page_alone
def test_play_goes_through_all_steps(window: Window) -> None:
    seen = window.root.evaluate("""r => new Promise(done => {
      const seen = new Set(), play = r.querySelector('[name=play]'); play.click();
      const look = () => { seen.add(r.explorer.state.step);
        if (seen.size > 1 && play.textContent.includes('play')) done([...seen]); else requestAnimationFrame(look); };
      look(); })""")
    assert seen == list(range(len(STEPS)))
    window.ready(step=20)


@page_alone
def test_colours_show_agreement_disagreement_and_hubs(window: Window) -> None:
    rows = {e: np.array(GALLERY.neighbours[e, 20]) for e in ENCODERS}
    labels = GALLERY.images.labels.numpy()
    measures = dict(
        agreement=(labels[rows["teacher"]] == labels[:, None]).mean(1),
        difference=np.array([len(set(a) - set(b)) / 10 for a, b in zip(rows["teacher"], rows["student"])]),
        hubness=np.bincount(rows["teacher"].ravel(), minlength=N),
    )
    away = [i for i in range(N) if i not in expected("teacher", 20, 0, 0.1)[0][:12] and i != 0]  # no lines and circles
    for name, values in measures.items():
        window.control("colour").select_option(name)
        low, high = (window.ink(i) for i in (min(away, key=values.__getitem__), max(away, key=values.__getitem__)))
        assert high[0] > low[0] + 60 and low[2] > high[2] - 60, f"{name}: {low} is not bluer than {high}"
        assert window.root.locator(".isd-legend .isd-ramp").count() == 1


@page_alone
def test_hubs_come_first(window: Window) -> None:
    named = np.bincount(np.array(GALLERY.neighbours["teacher", 20]).ravel(), minlength=N)
    order = sorted(range(N), key=lambda i: (-named[i], i))
    wanted = order[(order.index(0) + 1) % N]
    window.control("hub").click()
    window.ready(query=wanted)


@page_alone
def test_a_class_and_chance_choose_a_query(window: Window) -> None:
    window.control("class").select_option(label="plain")
    window.page.wait_for_function("() => document.querySelector('.isd-query b').textContent === 'plain'")
    seen = set()
    for _ in range(12):
        window.control("random").click()
        window.ready()
        seen.add(int(window.control("query").input_value()))
    window.control("class").select_option("")
    assert len(seen) > 1 and {int(GALLERY.images.labels[i]) for i in seen} == {3}


@page_alone
def test_wheel_and_drag_move_the_map(window: Window) -> None:
    x, y = window.at(40)
    box = window.root.locator(".isd-map").bounding_box()
    window.page.mouse.click(x, y)  # the wheel belongs to the page until then
    window.page.mouse.wheel(0, -300)
    moved = "v => Math.abs(document.querySelector('.isd-explorer').explorer.project(0)[0] - v) > 5"
    window.page.wait_for_function(moved, arg=window.at(0)[0])
    under_mouse = window.root.evaluate("r => r.explorer.project(40)")
    np.testing.assert_allclose(under_mouse, (x, y), atol=1.5)  # the map grows around the mouse
    before = np.array(window.root.evaluate("r => r.explorer.project(40)"))
    window.page.mouse.move(box["x"] + 30, box["y"] + 30)
    window.page.mouse.down()
    window.page.mouse.move(box["x"] + 80, box["y"] + 50, steps=5)
    window.page.mouse.up()
    np.testing.assert_allclose(window.root.evaluate("r => r.explorer.project(40)"), before + np.array([50, 20]), atol=1)
    window.ready(query=40)  # a drag is no click


@page_alone
def test_points_are_drawn_where_the_layout_has_them(window: Window) -> None:
    assert window.drawn(step=20).all()
    corner = window.at(int(unit_places("teacher", 20).sum(1).argmin()))  # the lower left corner of the grid
    picture = np.asarray(Image.open(BytesIO(window.page.screenshot())).convert("L"))
    assert picture[round(corner[1]) - 20, round(corner[0]) - 20] > 250  # beside it, nothing


@page_alone
def test_the_legend_hides_a_class(window: Window) -> None:
    mine = GALLERY.images.labels.numpy() == 3
    button = window.root.locator(".isd-legend button", has_text="plain")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    window.page.wait_for_function(
        "() => new Promise(d => requestAnimationFrame(() => requestAnimationFrame(() => d(true))))"
    )
    drawn = window.drawn(step=20)
    button.click()
    assert drawn[~mine].all() and drawn[mine].mean() < 0.4  # lines to neighbours and names cross some places


def test_temperature_and_count_change_the_soft_label(window: Window) -> None:
    for logarithm, temperature in ((-1.0, 0.1), (-0.3, 10**-0.3)):
        window.set_range("temperature", logarithm)
        _, _, by_class, entropy = expected("teacher", 20, 0, temperature)
        window.page.wait_for_function(
            "e => Math.abs(document.querySelector('.isd-soft').dataset.entropy - e) < 2e-3", arg=entropy
        )
        window.ready(query=0)
        bars = window.bars()
        np.testing.assert_allclose([bars[c] for c in range(len(NAMES))], by_class, atol=2e-3)
        assert "own other view" in window.root.locator(".isd-hard").inner_text()
    window.set_range("k", 5)
    window.page.wait_for_function("document.querySelectorAll('.isd-grid button').length === 5")
    window.set_range("k", 12)


def test_teacher_and_student_differ(window: Window) -> None:
    window.control("encoder").select_option("both")
    window.ready(encoder="both")
    both = {e: window.neighbours(e) for e in ENCODERS}
    assert both == {e: expected(e, 20, 0, 0.1)[0][:12] for e in ENCODERS}
    assert both["teacher"] != both["student"]
    window.control("encoder").select_option("student")
    window.ready(encoder="student")
    window.page.mouse.click(*window.at(9, "student"))
    window.ready(query=9)
    assert window.neighbours("student") == expected("student", 20, 9, 0.1)[0][:12]


def test_the_lasso_counts_what_it_holds(window: Window) -> None:
    places = unit_places("teacher", 20)
    inside = (np.abs(places - [-0.4, 0.2]) < [0.4, 0.45]).all(1)  # a rectangle between the points of the grid
    corners = [(-0.8, -0.25), (0.0, -0.25), (0.0, 0.65), (-0.8, 0.65)]
    points = window.on_screen(np.array(corners))
    window.control("lasso").click()
    window.page.mouse.move(*points[0])
    window.page.mouse.down()
    for point in (*points[1:], points[0]):
        window.page.mouse.move(*point, steps=4)
    window.page.mouse.up()
    window.control("lasso").click()
    chosen = window.root.locator(".isd-chosen")
    assert int(chosen.get_attribute("data-count")) == inside.sum() > 10
    assert chosen.locator("canvas").evaluate_all("a => a.map(c => +c.dataset.index)") == np.flatnonzero(inside).tolist()
    counts = dict(
        zip(chosen.locator(".isd-name").all_inner_texts(), map(int, chosen.locator(".isd-value").all_inner_texts()))
    )
    labels = GALLERY.images.labels.numpy()[inside]
    assert counts == {NAMES[c]: int((labels == c).sum()) for c in np.unique(labels)}
    if "/lab/" in window.page.url:
        assert json.loads(window.in_kernel("print(explorer.selection)")) == np.flatnonzero(inside).tolist()
    chosen.get_by_text("clear").click()
    assert chosen.inner_text() == ""


@with_kernel
def test_the_kernel_knows_and_sets_the_query(window: Window) -> None:
    window.page.mouse.click(*window.at(23))
    window.ready(query=23)
    assert window.in_kernel("print(explorer.query)").strip() == "23"
    window.in_kernel("explorer.widget.query = 31")
    window.ready(query=31)
    assert window.neighbours() == expected("teacher", 20, 31, 0.1)[0][:12]


def test_keys_do_what_the_mouse_does(window: Window) -> None:
    canvas = window.root.locator(".isd-map")
    before = window.root.evaluate("r => r.explorer.project(3)")
    canvas.press("ArrowRight")
    canvas.press("+")
    assert window.root.evaluate("r => r.explorer.project(3)") != before
    canvas.press("0")
    np.testing.assert_allclose(window.root.evaluate("r => r.explorer.project(3)"), before, atol=0.01)
    canvas.press(".")
    window.ready(query=1)
    canvas.press(",")
    window.ready(query=0)
    canvas.press("s")
    assert window.root.locator(".isd-chosen").get_attribute("data-count") == str(N)
    canvas.press("Escape")
    assert window.root.locator(".isd-chosen").inner_text() == ""
    canvas.press(" ")
    window.page.wait_for_selector(".isd-explorer[data-gliding=yes]")
    canvas.press(" ")


def test_more_keys(window: Window) -> None:
    canvas = window.root.locator(".isd-map")
    for key, name in (("c", "contours"), ("n", "names"), ("C", "contours"), ("Shift+N", "names")):
        before = window.control(name).is_checked()
        canvas.press(key)
        assert window.control(name).is_checked() != before
        canvas.press(key)
    canvas.press("e")
    window.ready(encoder="student")
    canvas.press("/")
    assert window.control("search").evaluate("e => e === e.getRootNode().activeElement")


@page_alone
def test_search_finds_classes_and_files(window: Window) -> None:
    labels = GALLERY.images.labels.numpy()
    window.control("search").fill("PLAIN")
    plain = np.flatnonzero(labels == 3).tolist()
    window.ready(query=plain[0])
    assert f"{len(plain)} found" in window.root.inner_text()
    window.control("match").click()
    window.ready(query=plain[1])
    window.control("matches").click()
    assert window.root.evaluate("r => r.explorer.state.selection") == plain
    window.control("search").fill(">77.png")
    window.ready(query=77)
    window.control("search").fill("nowhere")
    assert "0 found" in window.root.inner_text()
    window.control("search").fill("")
    window.root.locator(".isd-chosen").get_by_text("clear").click()


@page_alone
def test_contours_hold_most_of_a_class(window: Window) -> None:
    canvas = "c => c.toDataURL()"
    without = window.root.locator(".isd-map").evaluate(canvas)
    window.control("contours").check()
    lines = window.root.evaluate("r => r.explorer.contours('teacher')")
    window.page.wait_for_function(
        "old => document.querySelector('.isd-map').toDataURL() !== old", arg=without
    )
    window.control("contours").uncheck()
    assert len(lines) == len(NAMES)
    places, labels = unit_places("teacher", 20), GALLERY.images.labels.numpy()
    for c, line in enumerate(lines):
        segments = np.array(line["segments"]).reshape(-1, 4)  # x1, y1, x2, y2
        mine, others = ([encloses(segments, *place) for place in places[m]] for m in (labels == c, labels != c))
        assert abs(np.mean(mine) - 0.8) < 0.15 and np.mean(others) < np.mean(mine) - 0.1


def encloses(segments: np.ndarray, x: float, y: float) -> bool:  # (S, 4)
    "Whether a ray to the right crosses the lines an odd number of times."
    x1, y1, x2, y2 = segments[(segments[:, 1] > y) != (segments[:, 3] > y)].T
    return int((x < (x2 - x1) * (y - y1) / (y2 - y1) + x1).sum()) % 2 == 1


@page_alone
def test_names_can_be_switched_off(window: Window) -> None:
    canvas = "c => c.toDataURL()"
    with_names = window.root.locator(".isd-map").evaluate(canvas)
    window.control("names").uncheck()
    window.page.wait_for_function("old => document.querySelector('.isd-map').toDataURL() !== old", arg=with_names)
    window.control("names").check()
    window.page.wait_for_function("old => document.querySelector('.isd-map').toDataURL() === old", arg=with_names)


@page_alone
def test_a_selection_is_saved_as_a_table(window: Window) -> None:
    wanted = [7, 3, 101]
    window.root.evaluate("(r, wanted) => r.explorer.pick(wanted)", wanted)
    with window.page.expect_download() as waiting:
        window.control("csv").click()
    text = Path(waiting.value.path()).read_bytes().decode()
    assert waiting.value.suggested_filename == "selection.csv"
    rows = list(csv.reader(io.StringIO(text, newline="")))
    names = [NAMES[GALLERY.images.labels[i]] for i in wanted]
    files = [f"<b onclick='x'>{i}.png" for i in wanted]
    assert rows == [["image", "class", "file"], *map(list, zip(map(str, wanted), names, files))]
    window.root.locator(".isd-chosen").get_by_text("clear").click()


@page_alone
def test_the_map_is_saved_as_a_picture(window: Window) -> None:
    with window.page.expect_download() as waiting:
        window.control("png").click()
    picture = Image.open(Path(waiting.value.path()))
    box = window.root.locator(".isd-map").bounding_box()
    assert picture.format == "PNG" and np.allclose(picture.size, (box["width"], box["height"]), atol=2)
    assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > len(NAMES)


def test_an_own_image_becomes_the_query(window: Window, tmp_path: Path) -> None:
    if "/lab/" not in window.page.url:
        assert window.control("own").count() == 0
        assert "needs the network" in window.root.locator(".isd-help").text_content()
        return
    pixels = np.random.default_rng(5).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "<i>mine.png")
    (tmp_path / "notes.txt").write_text("no picture")
    with window.page.expect_file_chooser() as waiting:
        window.control("own").click()
    waiting.value.set_files(tmp_path / "<i>mine.png")
    window.ready(query=-1)
    np.testing.assert_array_equal(window.pixels(window.root.locator(".isd-query canvas")), pixels)
    assert window.root.locator(".isd-query b").inner_text() == "<i>mine.png"
    vector = encode(("teacher", 20), torch.from_numpy(pixels).permute(2, 0, 1)[None])
    cosines = GALLERY.features["teacher", 20] @ vector.numpy() / np.linalg.norm(vector)
    assert window.neighbours() == np.argsort(-cosines)[:12].tolist()
    assert window.in_kernel("print(explorer.query)").strip() == "-1"
    window.control("file").set_input_files(tmp_path / "notes.txt")
    window.root.get_by_text("notes.txt cannot be read as an image").wait_for()
    window.ready(query=-1)
    window.choose(4)
    window.ready(query=4)
    window.in_kernel(f"explorer.choose_file({str(tmp_path / '<i>mine.png')!r})")
    window.ready(query=-1)


@page_alone
def test_confusing_images_come_first(window: Window) -> None:
    rows, labels = torch.tensor(np.array(GALLERY.neighbours["teacher", 20])).long(), GALLERY.images.labels
    same = (labels[rows] == labels[:, None]).sum(1)
    order = sorted(range(N), key=lambda i: (int(same[i]), i))
    wanted = order[(order.index(0) + 1) % N]
    window.control("confusing").click()
    window.ready(query=wanted)


@page_alone
def test_names_are_text(window: Window) -> None:
    assert [b.inner_text() for b in window.root.locator(".isd-legend button").all()][:4] == list(NAMES)
    assert "<b onclick='x'>0.png" in window.root.locator(".isd-query").inner_text()
    assert window.root.locator("script, img, b[onclick]").count() == 0
    assert window.page.evaluate("window.broken") is None


def test_nothing_outside_is_asked_for_and_nothing_fails(window: Window) -> None:
    outside = [
        u
        for u in window.requests
        if not u.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "file:", "blob:", "data:"))
    ]
    assert not outside
    assert not window.complaints


def test_the_map_needs_no_webgl(chromium: BrowserContext, tmp_path: Path) -> None:
    window = opened(
        chromium,
        Explorer(GALLERY).html(tmp_path / "x.html").as_uri(),
        "const get = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (k, ...r) { "
        "return k.includes('webgl') ? null : get.call(this, k, ...r) };",
    )
    window.ready()
    assert window.drawn(step=20).all()
    window.page.mouse.click(*window.at(17))
    window.ready(query=17)
    assert window.neighbours() == expected("teacher", 20, 17, 0.1)[0][:12]
    assert not window.complaints
    window.page.close()


@pytest.mark.parametrize("kind", ["no labels", "one class", "five images"])
def test_smaller_sets_have_a_smaller_view(kind: str, chromium: BrowserContext, tmp_path: Path) -> None:
    gallery = GALLERY if kind != "five images" else made_up(5)
    images = gallery.images
    if kind == "no labels":
        images = replace(images, labels=None, classes=())
    elif kind == "one class":
        images = replace(images, labels=torch.zeros(N, dtype=torch.long), classes=("one",))
    window = opened(chromium, Explorer(replace(gallery, images=images)).html(tmp_path / "x.html").as_uri())
    window.ready()
    note, legend = window.root.locator(".isd-note"), window.root.locator(".isd-legend")
    if kind == "no labels":
        assert "no labels" in note.inner_text() and "one colour" not in legend.inner_text()
        for colour, ramps in (("hubness", 1), ("none", 0)):
            window.control("colour").select_option(colour)
            assert legend.locator(".isd-ramp").count() == ramps and bool(legend.inner_text()) == bool(ramps)
        assert window.root.locator(".isd-query b").inner_text() == "<b onclick='x'>0.png"
    elif kind == "one class":
        assert "one class" in note.inner_text() and legend.locator("button").count() == 1
    else:
        assert len(window.neighbours()) == 4 and window.control("k").get_attribute("max") == "4"
    assert not window.complaints
    window.page.close()


def test_pages_without_a_kernel_hold_the_picture() -> None:
    from nbconvert import HTMLExporter
    from nbformat import v4

    data, metadata = Explorer(GALLERY)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    output = v4.new_output("execute_result", data, metadata=metadata, execution_count=1)
    text, _ = HTMLExporter().from_notebook_node(v4.new_notebook(cells=[v4.new_code_cell("explorer", outputs=[output])]))
    assert text.count(data["image/png"][:200]) == 1 and text.count("<img") == 1


@pytest.fixture(scope="module")
def desk(chromium: BrowserContext, lab: Callable[[str], str]) -> Iterator[Window]:
    "A page of JupyterLab in which one notebook after the other is opened."
    window = opened(chromium, f"{lab('run')}&reset")
    window.page.wait_for_selector(".jp-Launcher")  # stays: another would come where nothing is open
    yield window
    window.page.close()


def test_isd_explore_opens_jupyterlab(desk: Window) -> None:
    notebook = Notebook(desk, "run/explorer.ipynb")
    browser.run_all_cells(desk.page)
    desk.page.wait_for_selector(".isd-explorer[data-state=ready]")
    assert desk.root.locator(".isd-legend button").first.inner_text() == "a<b>"
    assert not desk.complaints
    notebook.close()


class Notebook:
    "A notebook that is open in JupyterLab; cells are found by a piece of their source."

    def __init__(self, desk: Window, file: str) -> None:
        self.window, self.page = desk, desk.page
        self.page.evaluate("""async path => {
            for (const other of [...window.jupyterapp.shell.widgets("main")])
                if (other.context) other.dispose();  // what a test that failed has left
            await window.jupyterapp.commands.execute("docmanager:open", { path }); }""", file)
        self.page.wait_for_function("path => window.jupyterapp.shell.currentWidget?.context?.path === path", arg=file)
        browser.wait_for_kernel(self.page)

    def close(self) -> None:
        self.page.evaluate("""async () => { const panel = window.jupyterapp.shell.currentWidget;
            await panel.sessionContext.shutdown();
            panel.dispose(); }""")

    def sources(self) -> list[str]:
        return self.page.evaluate("() => [...window.jupyterapp.shell.currentWidget.content.model.cells].map("
                                  "c => c.type === 'code' ? c.sharedModel.source : '')")

    def find(self, piece: str) -> int:
        found = [i for i, source in enumerate(self.sources()) if piece in source]
        assert len(found) == 1, f"{piece!r} is in {len(found)} cells"
        return found[0]

    def select(self, cell: int) -> None:
        "Make a cell the active one, on the screen."
        self.page.evaluate("""async i => { const content = window.jupyterapp.shell.currentWidget.content;
            content.activeCellIndex = i; content.deselectAll(); await content.scrollToItem(i); }""", cell)

    def run(self, cell: int) -> None:
        self.select(cell)
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-cell')")

    def write(self, cell: int, text: str) -> None:
        "What a student does: select all in the cell and type."
        self.select(cell)
        self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell.jp-mod-active .cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(text)

    def wait_for_output(self, cell: int, piece: str) -> None:
        try:
            self.page.wait_for_function("""([i, piece]) => JSON.stringify(window.jupyterapp.shell.currentWidget.content
                .model.cells.get(i).outputs.toJSON()).includes(piece)""", arg=[cell, piece])
        except TimeoutError as error:
            state = self.page.evaluate("""() => { const panel = window.jupyterapp.shell.currentWidget;
                return [panel.sessionContext.session?.kernel?.status, [...panel.content.model.cells].map(c =>
                    c.type === "code" && [c.executionCount, JSON.stringify(c.outputs.toJSON()).slice(0, 300)])]; }""")
            raise AssertionError(f"no {piece!r} below cell {cell}; kernel and cells: {state}") from error


def test_a_check_turns_from_wrong_to_right(desk: Window) -> None:
    name = "5_teacher.ipynb"
    exercise = read_page(ROOT / "nbs" / "1_isd" / name).exercises[0]
    notebook = Notebook(desk, f"handouts/{name}")
    for piece in ("from torch import Tensor, nn", "from isd_nb.explore.exercises import check"):
        notebook.run(notebook.find(piece))
    fill, check = notebook.find(exercise.cell), notebook.find(exercise.checks[0])
    for cell in (fill, check):
        notebook.run(cell)
    notebook.wait_for_output(check, "function returns nothing")
    notebook.write(fill, exercise.solution)
    for cell in (fill, check):
        notebook.run(cell)
    notebook.wait_for_output(check, "Right")
    notebook.close()


@pytest.mark.parametrize("lesson", [
    pytest.param(lesson, id=lesson.stem, marks=[] if lesson.stem == "3_queue" else pytest.mark.skipif(
        "BROWSER_LONG" not in os.environ, reason="a minute of other cells comes before: set BROWSER_LONG=1"))
    for lesson in LESSONS])
def test_a_control_draws_its_figure_again(lesson: Path, desk: Window) -> None:
    notebook = Notebook(desk, lesson.relative_to(ROOT).as_posix())
    cell = notebook.find("interactive_figure(")
    notebook.select(cell)
    notebook.page.evaluate("() => void window.jupyterapp.commands.execute('notebook:run-all-above')")
    notebook.run(cell)
    output = notebook.page.locator(".jp-Cell.jp-mod-active .jp-Cell-outputArea")
    figure = output.locator("img.widget-image")
    before = figure.get_attribute("src")
    handles, buttons = output.locator(".noUi-handle"), output.locator(".widget-toggle-button:not(.mod-active)")
    if handles.count():
        assert all(track.bounding_box()["width"] > 200 for track in output.locator(".noUi-base").all())
        handles.first.press("ArrowLeft")
    else:
        cut = buttons.evaluate_all("all => all.filter(b => b.scrollWidth > b.clientWidth).map(b => b.innerText)")
        assert not cut
        buttons.first.click()
    expect(figure).not_to_have_attribute("src", before, timeout=1000 * browser.PATIENCE)
    assert figure.evaluate("async img => (await img.decode(), img.naturalWidth)") > 200
    notebook.close()


def test_the_live_run_moves_and_can_be_interrupted(desk: Window) -> None:
    notebook = Notebook(desk, "index.ipynb")
    live = notebook.find("live = display(draw(curve)")
    few = "train, test = (images.subset(range(200)) for images in (train, test))\n"
    often = notebook.sources()[live].replace("steps // 8)", "steps // 100)")
    assert "steps // 100)" in often
    notebook.write(live, few + often)  # draws sooner
    browser.run_all_cells(notebook.page)
    notebook.wait_for_output(live, "image/png")
    notebook.select(live)
    seen = notebook.page.evaluate("""([i, patience]) => new Promise(done => {
        const seen = new Set(), end = performance.now() + patience, look = () => {
        const cell = window.jupyterapp.shell.currentWidget.content.widgets[i].node, img = cell.querySelector("img");
        if (img?.complete && img.naturalWidth > 300) seen.add(img.src);
        if (seen.size > 2 || performance.now() > end) done(seen.size); else setTimeout(look, 50); };
        look(); })""", [live, 1000 * browser.PATIENCE])
    assert seen == 3, "three pictures, one after the other, in the same place"
    notebook.page.evaluate("() => window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
    notebook.wait_for_output(live, "KeyboardInterrupt")
    browser.wait_for_kernel(notebook.page)
    images, score = json.loads(notebook.window.in_kernel("import json; print(json.dumps(curve[-1]))"))
    assert images >= 2 * 640 and 0 < score < 1, "the curve so far is kept"
    notebook.close()


@pytest.mark.skipif("BROWSER_LONG" not in os.environ, reason="half a minute of training: set BROWSER_LONG=1")
def test_the_live_run_passes_raw_pixels(desk: Window) -> None:
    notebook = Notebook(desk, "index.ipynb")
    browser.run_all_cells(notebook.page)
    notebook.wait_for_output(notebook.find("final = curve[-1][1]"), "20-NN accuracy: ISD")
    shown = notebook.window.in_kernel("import json; print(json.dumps([final, raw, untrained]))")
    ours, pixels, untrained = json.loads(shown)
    assert ours > pixels and ours > untrained
    notebook.close()


def test_slides_fit_their_page_and_load_nothing(chromium: BrowserContext, tmp_path: Path) -> None:
    (tmp_path / "lecture.html").write_text(slides.build_page((slides.COURSE / "lecture.md").read_text()))
    window = opened(chromium, (tmp_path / "lecture.html").as_uri() + "#4")
    window.page.wait_for_selector("body[data-formulas=ready]")
    overfull = window.page.evaluate("""() => [...document.querySelectorAll("section")].filter(slide => {
        const body = slide.querySelector(".body"), room = body.getBoundingClientRect();
        return [...body.querySelectorAll("*")].some(e => { const box = e.getBoundingClientRect();
            return box.bottom > room.bottom + 5 || box.right > room.right + 5; }); }).map(slide => slide.id)""")
    assert not overfull, f"these slides hold too much: {overfull}"
    assert window.page.locator("mjx-merror").count() == 0 and window.page.locator("mjx-container svg").count() > 20
    window.page.keyboard.press("ArrowRight")
    window.page.keyboard.press("n")
    assert window.page.locator("section.shown").get_attribute("id") == "5"
    assert window.page.locator("section.shown aside").is_visible()
    assert all(u.startswith(("file:", "data:")) for u in window.requests) and not window.complaints
    window.page.close()
