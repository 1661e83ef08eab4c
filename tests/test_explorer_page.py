"""The explorer where a second view is open, the kernel is slow or fails, and values are unusual."""
import csv
import io
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from isd_nb.data import ImageSet
from isd_nb.engine.training import train
from isd_nb.errors import refusal
from isd_nb.explore import explorer, gallery
from isd_nb.explore.gallery import Gallery, gallery_of, gallery_of_run
from isd_nb.explore.neighbours import look_up, other_neighbours
from isd_nb.recipe import Recipe
from isd_nb.sources.door import load_images

browser = pytest.importorskip("browser", reason="playwright is not installed: pip install 'isd_nb[dev]'")
needs_browser = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium found: run `make browser`")
COUNT, STEPS = 40, (0, 10)
PAGE = """<meta charset="utf-8"><style>CSS</style><body><script type="module">
MODULE
const header = HEADER, data = new DataView(bytesOf("DATA").buffer);
// what anywidget gives to a view: values that all views share, and messages to the kernel, which a test replies to
window.model = (values) => {
  const on = {};
  const call = (event, ...given) => [...(on[event] || [])].forEach((act) => act(...given));
  const model = { values: { header, data, query: 0, own: {}, selection: [], ...values }, asked: [], saved: 0,
    get: (name) => model.values[name], save_changes: () => { model.saved += 1; },
    set(name, value) {
      if (JSON.stringify(model.values[name]) === JSON.stringify(value)) return;
      model.values[name] = value;
      call(`change:${name}`);
    },
    on: (event, act) => (on[event] ||= []).push(act), off() {},
    reply({ id, query, step }) {
      const rows = [1, 2, 3].map((i) => (Math.max(query, 0) + i) % 40);
      call("msg:custom", typeof model.fails === "string" ? { id, error: model.fails } : { id, step, rows,
        similarities: [0.9, 0.8, 0.7], shares: [0.5, 0.3, 0.2], by_class: [0.6, 0.4], entropy: 1 }, []);
    },
    send(question) {
      model.asked.push(question);
      if (!model.slow) setTimeout(() => model.reply(question));
    } };
  return model;
};
window.view = (model) => {
  const root = document.body.appendChild(document.createElement("div"));
  render({ model, el: root });
  return root;
};
window.ready = async (root, state = "ready") => {
  while (root.dataset.state !== state) await new Promise((done) => setTimeout(done, 5));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
};
window.hasLines = async () => { // whether the next frames draw lines to neighbours
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const ink = CanvasRenderingContext2D.prototype, { lineTo } = ink;
  let lines = 0;
  ink.lineTo = function (...at) { lines += this.canvas.isConnected; return lineTo.apply(this, at); };
  document.querySelector("canvas.isd-map").dispatchEvent(new KeyboardEvent("keydown", { key: "0" }));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  ink.lineTo = lineTo;
  return lines > 0;
};
document.body.dataset.loaded = "yes";
</script>"""
OWN = {"name": "mine.png", "picture": "data:image/png;base64,"}


def made_up(count: int = COUNT, channels: int = 1, names: tuple[str, ...] = ("teacher", "student")) -> Gallery:
    "Random images and features of two classes, at two steps."
    rng = np.random.default_rng(0)
    labels = torch.arange(count) % 2
    pixels = torch.from_numpy(rng.integers(0, 256, (count, channels, 8, 8), dtype=np.uint8))
    moments = [(name, step) for name in names for step in STEPS]
    features = {m: torch.from_numpy(rng.normal(size=(count, 5))).float() for m in moments}
    images = ImageSet(pixels, labels, ("a", "b"))
    return gallery_of(images, features, {m: rng.random((count, 2), dtype=np.float32) for m in moments}, show=False)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    "A page that can show views of one explorer, with a kernel that a test plays."
    header, data = explorer.packed(*explorer.describe(made_up()))
    module = (explorer.page("contours.js") + explorer.page("explorer.js")).replace("export default", "window.page =")
    parts = {"CSS": explorer.page("explorer.css"), "HEADER": explorer.script_json(header),
             "DATA": b64encode(data).decode(), "MODULE": module}
    text = PAGE
    for name, part in parts.items():
        text = text.replace(name, part, 1)
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(text, encoding="utf-8")
    with browser.chromium(tmp_path_factory.mktemp("profile")) as context:
        context.set_default_timeout(10_000)
        opened = context.new_page()
        opened.goto(file.as_uri())
        opened.wait_for_selector("body[data-loaded]")
        yield opened


def on_page(page: "browser.Page", script: str, given: object = None) -> object:
    "What a piece of JavaScript returns on a page without views."
    page.evaluate("() => document.body.replaceChildren()")
    page.mouse.move(1, 1)
    return page.evaluate("async (given) => {" + script + "}", given)


@needs_browser
def test_a_second_view_keeps_the_query(page: "browser.Page") -> None:
    found = on_page(page, """const shared = model({ query: 5, own: given }), first = view(shared);
        await ready(first);
        const second = view(shared);
        await ready(second);
        return [shared.values.query, first.dataset.query, second.dataset.query]; """, OWN)
    assert found == [5, "5", "5"]
    found = on_page(page, """const shared = model({ query: -1, own: given }), root = view(shared);
        await ready(root);
        return [shared.values.query, root.dataset.query, root.querySelector(".isd-query b").textContent]; """, OWN)
    assert found == [-1, "-1", "mine.png"]
    found = on_page(page, """const shared = model({ query: 5 }), roots = [view(shared), view(shared)];
        await Promise.all(roots.map((root) => ready(root)));
        shared.set("own", given);  // a new one is the query of all views
        await Promise.all(roots.map((root) => ready(root)));
        return [shared.values.query, ...roots.map((root) => root.dataset.query)]; """, OWN)
    assert found == [-1, "-1", "-1"]


@needs_browser
def test_a_selection_of_python_reaches_every_view(page: "browser.Page") -> None:
    found = on_page(page, """const shared = model({ selection: [3, 4] }), first = view(shared);
        const counts = (root) => root.querySelector(".isd-chosen").dataset.count;
        const held = [counts(first)], second = view(shared);
        shared.set("selection", [7, 8, 9]);
        held.push(counts(first), counts(second));
        first.explorer.pick([1]);
        held.push(counts(second), shared.values.selection.join());
        shared.set("selection", [2, 99]);
        held.push(first.explorer.state.selection.join(), first.querySelector(".isd-note").textContent);
        await ready(first);
        return held; """)
    assert found == ["2", "3", "3", "1", "1", "1", "There is no image 99: select numbers from 0 to 39."]


@needs_browser
def test_lines_belong_to_what_is_shown(page: "browser.Page") -> None:
    script = """const shared = model({}), root = view(shared);
        await ready(root);
        const panel = root.querySelector(".isd-panel"), seen = [await hasLines()];
        shared.slow = true;
        CHANGE
        seen.push(await hasLines());
        shared.fails = FAILS;
        shared.reply(shared.asked.at(-1));
        await ready(root, typeof FAILS === "string" ? "failed" : "ready");
        return [...seen, await hasLines(), panel.childElementCount > 0]; """
    step = """const slider = root.querySelector("[name=step]");
        slider.value = 0;
        slider.dispatchEvent(new Event("input")); """
    for change in ("root.explorer.choose(9);", step):
        once = script.replace("CHANGE", change)
        assert on_page(page, once.replace("FAILS", "null")) == [True, False, True, True], change
        assert on_page(page, once.replace("FAILS", "'out of memory'")) == [True, False, False, False], change


@needs_browser
def test_the_tooltip_follows_its_image(page: "browser.Page") -> None:
    found = on_page(page, """const root = view(model({})), [map, tip] = root.querySelectorAll(".isd-map, .isd-hover");
        await ready(root);
        const point = () => { const [clientX, clientY] = root.explorer.project(5); return { clientX, clientY }; };
        const hovered = () => { map.dispatchEvent(new PointerEvent("pointermove", point()));
          return [tip.dataset.index, tip.style.left, tip.style.top]; };
        const before = hovered();
        map.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
        return [before, hovered()]; """)
    assert found[0][0] == found[1][0] == "5" and found[0][2] != found[1][2]


@needs_browser
def test_the_legend_of_hubs_is_that_of_the_step(page: "browser.Page") -> None:
    found = on_page(page, """const root = view(model({})), colour = root.querySelector("[name=colour]");
        await ready(root);
        colour.value = "hubness";
        colour.dispatchEvent(new Event("change"));
        const slider = root.querySelector("[name=step]"), legend = root.querySelector(".isd-legend"), seen = [];
        for (const step of [1, 0]) {
          slider.value = step;
          slider.dispatchEvent(new Event("input"));
          seen.push(legend.textContent);
        }
        await ready(root);
        return seen; """)
    most = [int(np.bincount(made_up().neighbours["teacher", step].ravel()).max()) for step in (10, 0)]
    assert most[0] != most[1] and [f"a hub: {n} name it" in text for n, text in zip(most, found)] == [True, True]


@needs_browser
def test_the_image_before_an_own_one_is_the_last(page: "browser.Page") -> None:
    found = on_page(page, """const root = view(model({ query: -1, own: given })), map = root.querySelector(".isd-map");
        await ready(root);
        map.dispatchEvent(new KeyboardEvent("keydown", { key: "," }));
        return root.explorer.state.query; """, OWN)
    assert found == COUNT - 1


NAMED = """const names = Array.from({ length: 40 }, (_, i) => `p${i % 4}/slice${i}.png`), blobs = [], drawn = [];
    Object.assign(names, { 1: "p1/a\\u202fb\\u00a0c.png", 2: "p2/Cafe\\u0301.png", 3: "p3/a\\nb.png" });
    const family = "\\u{1f469}\\u200d\\u{1f467}", classes = ["=1+1", family.repeat(20)];
    const named = { ...model({}).values.header, names, classes, note: "a note" };
    const { fillText } = CanvasRenderingContext2D.prototype;
    CanvasRenderingContext2D.prototype.fillText = function (...given) {
      drawn.push(given[0]);
      return fillText.apply(this, given); };
    const root = view(model({ header: named }));
    await ready(root);
    CanvasRenderingContext2D.prototype.fillText = fillText; """


@needs_browser
def test_the_table_of_a_selection_is_for_spreadsheets(page: "browser.Page") -> None:
    found = on_page(page, NAMED + """const { createObjectURL } = URL;
        URL.createObjectURL = (blob) => { blobs.push(blob); return "#"; };
        root.explorer.pick([0, 4, 3]);
        root.querySelector("[name=csv]").click();
        URL.createObjectURL = createObjectURL;
        return [await blobs[0].text(), root.querySelector(".isd-sheet button").title]; """)
    rows = list(csv.reader(io.StringIO(found[0], newline="")))
    assert rows[1:3] == [["0", "'=1+1", "p0/slice0.png"], ["4", "'=1+1", "p0/slice4.png"]]
    assert rows[3][2] == "p3/a\nb.png"


@needs_browser
def test_the_search_finds_names_however_they_are_typed(page: "browser.Page") -> None:
    found = on_page(page, NAMED + """const search = root.querySelector("[name=search]"), seen = [];
        for (const text of ["a b c", "CAF\\u00c9", "cafe\\u0301", "A B.png", "a\\\\x0ab", "p1/", "nothing"]) {
          search.value = text;
          search.dispatchEvent(new Event("input"));
          seen.push(root.querySelector(".isd-hits").textContent);
        }
        await ready(root);
        return [seen, root.querySelector(".isd-query").textContent]; """)
    assert found[0] == ["1 found"] * 5 + ["10 found", "0 found"] and "p1/" not in found[1]


@needs_browser
def test_a_name_is_cut_between_letters_and_a_note_fits(page: "browser.Page") -> None:
    found = on_page(page, NAMED + """const { scrollWidth, clientWidth } = document.documentElement;
        return [drawn.filter((text) => text.startsWith(family)), scrollWidth - clientWidth]; """)
    family = "\U0001f469\u200d\U0001f467"
    assert set(found[0]) == {17 * family + "\u2026"} and found[1] == 0


@pytest.fixture
def run(make_folder: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "A run of some steps; UMAP takes half a minute to start, so places are random."
    make_folder("images", {"a": 60, "b": 60})
    data = f"folder:{tmp_path / 'images'}"
    recipe = Recipe("tiny", data=data, batch_size=8, queue_size=16, width=4, steps=4, evaluations=1)
    train(recipe, load_images(recipe.data, 16)[0], tmp_path / "run", device="cpu", show=False)
    rng = np.random.default_rng(0)
    monkeypatch.setattr(gallery, "layout", lambda f, start=None: rng.random((len(f), 2), np.float32))
    return tmp_path / "run"


@pytest.mark.parametrize("count", [150, 151, 5001])
def test_the_first_of_equals_is_the_nearest(count: int) -> None:
    features = torch.randn(count, 128, generator=torch.Generator().manual_seed(0))
    features[50:149] = features[50]
    first = [*range(50, 60), 61, 62]
    assert look_up(features, 60, 12).rows.tolist() == other_neighbours(features, 12)[60].tolist() == first
    assert "0 or more, not -1" in refusal(look_up, features, 60, -1)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_run_need_not_have_a_utf8_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.rename(tmp_path / os.fsdecode(b"caf\xe9")))
    page = explorer.Explorer.from_run(".", moments=1, device="cpu", show=False).html(tmp_path / "page.html")
    assert r"<title>caf\xe9</title>" in page.read_text(encoding="utf-8")


def test_an_old_page_stays_until_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, link = tmp_path / "page.html", tmp_path / "link.html"
    page.write_text("of another program")
    assert "is no page of the explorer; it would be overwritten" in refusal(explorer.Explorer(made_up()).html, page)
    page.write_text(old := '<div id="explorer">old</div>')
    link.symlink_to(page)
    shown = explorer.Explorer(made_up())
    with monkeypatch.context() as patch:
        patch.setattr(explorer, "to_html", lambda gallery: "\udce9")
        with pytest.raises(UnicodeEncodeError):
            shown.html(page)
    assert page.read_text() == old
    with monkeypatch.context() as patch:
        patch.setattr(explorer, "to_html", lambda gallery: "new")
        shown.html(link)
        shown.html(Path(os.devnull))
    assert page.read_text() == "new" and link.is_symlink() and len(os.listdir(tmp_path)) == 2


def test_each_gallery_of_a_run_has_its_own_picture(run: Path) -> None:
    few, more = (gallery_of_run(run, limit=n, moments=1, device="cpu", show=False) for n in (8, 20))
    pictures = [explorer.picture(few), explorer.picture(more)]
    assert pictures == [explorer.picture(replace(shown, folder=None)) for shown in (few, more)]
    assert pictures == [explorer.picture(few), explorer.picture(more)] and pictures[0] != pictures[1]
    assert len([*(run / "explorer").glob("map*.png")]) == 2


def is_free(folder: Path) -> bool:
    "Whether another process can take the lock of a folder."
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return subprocess.run([sys.executable, "-c", code, str(folder / ".lock")], capture_output=True).returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_two_processes_do_not_mix_what_they_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free: list[bool] = []

    def watched(act: Callable) -> Callable:
        return lambda *given, **settings: (free.append(is_free(tmp_path)), act(*given, **settings))[1]

    monkeypatch.setattr(np, "save", watched(np.save))
    monkeypatch.setattr(np, "load", watched(np.load))
    gallery.write_cache(tmp_path, "one", made_up(8, names=("teacher",)))
    assert gallery.read_cache(tmp_path, "one") and gallery.read_cache(tmp_path, "other") is None
    assert len(free) == 12 and not any(free) and is_free(tmp_path)
    assert gallery.read_cache(tmp_path / "nowhere", "one") is None and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("channels", [2, 16])
def test_images_of_any_number_of_channels_are_shown(channels: int, tmp_path: Path) -> None:
    shown = made_up(8, channels)
    tiles = explorer.tile(shown.images.get([3]), 8, 1)
    colours = shown.images[3][:3].permute(1, 2, 0) if channels == 16 else shown.images[3][0]
    np.testing.assert_array_equal(tiles, colours)
    assert explorer.Explorer(shown).html(tmp_path / "x.html").stat().st_size > 10_000


def test_every_error_reaches_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: Exception) -> Callable:
        def encode(*given: object) -> None:
            raise error
        return encode

    sent: list[dict] = []
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    question = dict(kind="neighbours", encoder="teacher", step=10, query=-1, k=3, temperature=0.1, id="7")
    for error in (RuntimeError("out of memory"), MemoryError()):
        own = replace(made_up(8), encode=fails(error))
        widget = SimpleNamespace(gallery=own, own_image=image, adopt=None,
                                 send=lambda found, files: sent.append(found))
        explorer.reply(widget, question, [])
    explorer.reply(widget, dict(kind="image", rows=[], id="7"), [])
    monkeypatch.setattr(Path, "write_bytes", fails(OSError(28, "No space left on device")))
    explorer.reply(widget, dict(kind="own", name="mine.png", id="7"), [b""])
    assert [found["error"] for found in sent] == [
        "out of memory", "MemoryError",
        "a strip of thumbnails needs the number of at least one image, and there is none",
        "mine.png cannot be read as an image: No space left on device"]


def test_an_encoder_beside_others_is_not_named_both() -> None:
    assert 'cannot be named "both"' in refusal(made_up, 8, 1, ("teacher", "both"))
    assert made_up(8, names=("both",)).encoders == ["both"]


def test_other_files_among_the_checkpoints_are_left_alone(run: Path) -> None:
    kept = gallery.run_files(run, 8)
    (run / "checkpoints" / "encoder_best.safetensors").write_bytes(b"")
    assert gallery.run_files(run, 8) == kept and kept
