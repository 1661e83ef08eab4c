"""The explorer under a real mouse: in JupyterLab, where the kernel answers, and as one HTML file, where the page does.

One Chromium and one JupyterLab serve all tests. Every expected number is computed here, in float64 and from the
features, not by the code under test. Images, names and places are made up, so that each point stands alone on the map.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isd_nb.data import ImageSet

pytest.importorskip("playwright", reason="playwright is not installed: pip install 'isd_nb[dev]'")
pytest.importorskip("anywidget", reason="anywidget is not installed: pip install 'isd_nb[explore]'")
from isd_nb.explorer import Explorer, Gallery
from playwright.sync_api import BrowserContext, Page, sync_playwright

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found: run `make browser`")

NAMES = (
    "<img src=x onerror=window.broken=1>",
    "\"quoted\" & 'single'",
    "</script><script>window.broken=1</script>",
    "plain",
)
ENCODERS, STEPS, N, ZOOM, SIZE = ("teacher", "student"), (0, 10, 20), 144, 0.92, 12
CHROME = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
LAB = [
    "--no-browser",
    "--ip=127.0.0.1",
    "--allow-root",
    "--ServerApp.port_retries=0",
    "--LabApp.expose_app_in_browser=True",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
]


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
    return Gallery.of(
        images, features, {m: grid[rng.permutation(n)] for m in moments}, temperature=0.1, title="<i>made up"
    )


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
        self.page.wait_for_selector(f".isd-explorer{wanted}", timeout=20_000)

    def reset(self) -> None:
        "The state that every test starts from."
        self.control("encoder").select_option("teacher")
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
        self.root.locator(".isd-overlay").scroll_into_view_if_needed()
        box = self.root.locator(".isd-overlay").bounding_box()
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
    with sync_playwright() as play:
        context = play.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("chromium"),
            executable_path=CHROMIUM,
            headless=True,
            viewport=dict(width=1400, height=1000),
            args=[*CHROME, "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"],
        )
        yield context
        context.close()


def opened(context: BrowserContext, address: str, script: str = "") -> Window:
    page, requests, complaints = context.new_page(), [], []
    page.on("request", lambda r: requests.append(r.url))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    if script:
        page.add_init_script(script)
    page.goto(address)
    return Window(page, requests, complaints)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    "The address of a notebook in a JupyterLab that knows nothing of the user's settings."
    home = tmp_path_factory.mktemp("lab")
    source = (
        f"import sys\nsys.path[:0] = [{str(Path(__file__).parent)!r}]\nfrom test_browser import GALLERY, Explorer\n"
        "explorer = Explorer(GALLERY)\nexplorer"
    )
    cell = dict(cell_type="code", id="one", metadata={}, execution_count=None, outputs=[], source=source)
    spec = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    (home / "try.ipynb").write_text(json.dumps(dict(cells=[cell], metadata=spec, nbformat=4, nbformat_minor=5)))
    folders = {f"JUPYTER_{k}_DIR": str(home / k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")}
    folders |= {
        k: str(home / k.lower()) for k in ("IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    }
    notice = (
        home / "jupyterlab_settings_dir" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    )
    notice.parent.mkdir(parents=True)
    notice.write_text('{"fetchNews": "false"}')
    port, token = free_port(), secrets.token_hex(8)
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        *LAB,
        f"--port={port}",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={home}",
    ]
    with (home / "log.txt").open("w") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **folders, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log
        )
        try:
            wait_for_server(f"http://127.0.0.1:{port}/api/status?token={token}", server, home / "log.txt")
            yield f"http://127.0.0.1:{port}/lab/tree/try.ipynb?token={token}"
        finally:
            server.terminate()
            server.wait(20)


def wait_for_server(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start: {log.read_text()}")


@pytest.fixture(scope="module", params=["file", "lab"])
def home(
    request: pytest.FixtureRequest, chromium: BrowserContext, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Window]:
    "The same explorer, as a file and in JupyterLab."
    if request.param == "file":
        path = Explorer(GALLERY).html(tmp_path_factory.mktemp("file") / "made up.html")
        window = opened(chromium, path.as_uri())
    else:
        window = opened(chromium, request.getfixturevalue("lab"))
        window.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=30_000)
        window.page.wait_for_function(
            "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
            timeout=30_000,
        )
        window.page.evaluate("() => void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    window.page.wait_for_selector(".isd-explorer[data-state=ready]", timeout=30_000)
    yield window
    window.page.close()


@pytest.fixture
def window(home: Window) -> Window:
    home.reset()
    return home


def test_a_click_shows_the_neighbours_of_that_image(window: Window) -> None:
    for image in (17, 101):
        window.page.mouse.click(*window.at(image))
        window.ready(query=image)
        assert window.neighbours() == expected("teacher", 20, image, 0.1)[0][:12]
        assert f"image {image}" in window.root.locator(".isd-query").inner_text()


def test_a_click_on_a_neighbour_makes_it_the_query(window: Window) -> None:
    first = window.neighbours()[0]
    window.root.locator(".isd-grid button").first.click()
    window.ready(query=first)
    assert window.neighbours() == expected("teacher", 20, first, 0.1)[0][:12]


def test_hover_shows_the_thumbnail_of_that_image(window: Window) -> None:
    for image in (5, 77):
        window.page.mouse.move(*window.at(image))
        canvas = window.root.locator(f".isd-hover canvas[data-index='{image}'][data-drawn=yes]")
        canvas.wait_for(timeout=5_000)
        pixels = canvas.evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
        shown = np.array(pixels).reshape(SIZE, SIZE, 4)[..., :3]
        np.testing.assert_array_equal(shown, GALLERY.images[image].permute(1, 2, 0).numpy())


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
    assert len(between) >= 2, "the point jumped instead of gliding"
    window.ready(step=0)
    np.testing.assert_allclose(
        window.root.evaluate("r => [...r.explorer.places('teacher')]"), unit_places("teacher", 0).flatten(), atol=1e-4
    )
    assert window.neighbours() == expected("teacher", 0, 0, 0.1)[0][:12]


def test_points_are_drawn_where_the_layout_has_them(window: Window) -> None:
    assert window.drawn(step=20).all()
    corner = window.at(int(unit_places("teacher", 20).sum(1).argmin()))  # the lower left corner of the grid
    picture = np.asarray(Image.open(BytesIO(window.page.screenshot())).convert("L"))
    assert picture[round(corner[1]) - 20, round(corner[0]) - 20] > 250  # beside it, nothing


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
    chosen.get_by_text("clear").click()
    assert chosen.inner_text() == ""


def test_keys_do_what_the_mouse_does(window: Window) -> None:
    overlay = window.root.locator(".isd-overlay")
    before = window.root.evaluate("r => r.explorer.project(3)")
    overlay.press("ArrowRight")
    overlay.press("+")
    assert window.root.evaluate("r => r.explorer.project(3)") != before
    overlay.press("0")
    np.testing.assert_allclose(window.root.evaluate("r => r.explorer.project(3)"), before, atol=0.01)
    overlay.press(".")
    window.ready(query=1)
    overlay.press(",")
    window.ready(query=0)


def test_confusing_images_come_first(window: Window) -> None:
    rows, labels = torch.tensor(np.array(GALLERY.neighbours["teacher", 20])).long(), GALLERY.images.labels
    same = (labels[rows] == labels[:, None]).sum(1)
    order = sorted(range(N), key=lambda i: (int(same[i]), i))
    wanted = order[(order.index(0) + 1) % N]
    window.control("confusing").click()
    window.ready(query=wanted)


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


def test_without_webgl_the_picture_stands_in(chromium: BrowserContext, tmp_path: Path) -> None:
    window = opened(
        chromium,
        Explorer(GALLERY).html(tmp_path / "x.html").as_uri(),
        "const get = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (k, ...r) { "
        "return k === 'webgl2' ? null : get.call(this, k, ...r) };",
    )
    window.ready()
    assert "no WebGL" in window.root.locator(".isd-note").inner_text()
    assert window.root.locator(".isd-stage img").evaluate("i => i.complete && i.naturalWidth > 100")
    window.choose(17)
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
