"""How fast is the explorer with 50,000 images, in JupyterLab and as a file, on a machine without a GPU?

    python benchmarks/explorer.py [--json FILE] [--images 50000] [--repeats 3]

Made-up images, features, layouts and neighbours of teacher and student at four steps lie ready on disk, as they do
beside a run. A real JupyterLab runs one cell in a new kernel; Chromium draws with software. Measured are

* `first_picture_seconds`: from running the cell (imports and reading from disk included) to map and neighbours;
* `click_seconds`: from letting the mouse go to the new neighbours in the panel;
* `frames_per_second`: while the points glide from one step to another;
* `file_open_seconds` and `file_click_seconds`: the same for the HTML file, where the page itself does the arithmetic.

All values are kept; other jobs on the machine make single ones slower. Needs Chromium (`make browser`).
"""
import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import about
from made_up import WIDTH, keep_gallery, kept_explorer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from browser import chromium, jupyterlab, run_all_cells, wait_for_kernel
from playwright.sync_api import Page

READY = ".isd-explorer[data-state=ready][data-gliding=no]"


def write_notebook(folder: Path) -> None:
    source = (f"import sys\nsys.path[:0] = [{str(Path(__file__).parent)!r}]\nfrom made_up import kept_explorer\n"
              f"kept_explorer({str(folder)!r})")
    cell = dict(cell_type="code", id="one", metadata={}, execution_count=None, outputs=[], source=source)
    spec = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    (folder / "try.ipynb").write_text(json.dumps(dict(cells=[cell], metadata=spec, nbformat=4, nbformat_minor=5)))


CLICK = """([x, y]) => new Promise(done => {
  const root = document.querySelector('.isd-explorer'), map = root.querySelector('.isd-map');
  const event = { clientX: x, clientY: y, pointerId: 1, bubbles: true };
  const fire = (kind) => map.dispatchEvent(new PointerEvent(kind, event));
  fire('pointerdown'); const start = performance.now(); fire('pointerup');
  const look = () => root.dataset.state === 'ready' && Number(root.dataset.query) === root.explorer.state.query
    ? done((performance.now() - start) / 1000) : requestAnimationFrame(look);
  look(); })"""


def clicks(page: Page, count: int) -> list[float]:
    "Seconds from a click on a point to its neighbours, in different places."
    found = []
    for i in np.linspace(0, count - 1, 8).astype(int).tolist():
        place = page.evaluate("i => document.querySelector('.isd-explorer').explorer.project(i)", i)
        found.append(page.evaluate(CLICK, place))
    return found


def glides(page: Page) -> list[float]:
    "Frames a second from step to step."
    slide = ("s => { const e = document.querySelector('.isd-explorer [name=step]'); e.value = s; "
             "e.dispatchEvent(new Event('input')); }")
    found = []
    for step in (0, 3, 1, 2, 0, 3):
        page.evaluate(slide, step)
        page.wait_for_selector(".isd-explorer[data-gliding=yes]")
        page.wait_for_selector(READY, timeout=60_000)
        found.append(float(page.evaluate("document.querySelector('.isd-explorer').dataset.fps")))
    return found


def in_jupyterlab(context: Any, folder: Path, count: int, repeats: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = dict(first_picture_seconds=[], click_seconds=[], frames_per_second=[])
    with jupyterlab(folder, [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}"]) as address:
        for _ in range(repeats):
            page = context.new_page()
            page.goto(address("try.ipynb"))
            wait_for_kernel(page)
            kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
            page.evaluate(f"() => {kernel}.restart()")
            wait_for_kernel(page)
            start = time.perf_counter()
            run_all_cells(page)
            page.wait_for_selector(READY, timeout=120_000)
            found["first_picture_seconds"].append(time.perf_counter() - start)
            found["click_seconds"] += clicks(page, count)
            found["frames_per_second"] += glides(page)
            page.close()
    return found


def in_file(context: Any, folder: Path, count: int, repeats: int) -> dict[str, Any]:
    path = kept_explorer(str(folder)).html(folder / "explorer.html")
    found: dict[str, Any] = dict(file_megabytes=path.stat().st_size / 1e6, file_open_seconds=[], file_click_seconds=[])
    for _ in range(repeats):
        page, start = context.new_page(), time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector(READY, timeout=120_000)
        found["file_open_seconds"].append(time.perf_counter() - start)
        found["file_click_seconds"] += clicks(page, count)
        page.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keep_gallery(folder, args.images)
        write_notebook(folder)
        with chromium(folder / "profile") as context:
            measured = in_jupyterlab(context, folder, args.images, args.repeats)
            measured |= in_file(context, folder, args.images, args.repeats)
    for key, values in measured.items():
        values = values if isinstance(values, list) else [values]
        print(f"{key:24} median {statistics.median(values):8.2f}   from {min(values):.2f} to {max(values):.2f}")
    if args.json:
        settings = about("explorer", images=args.images, features=WIDTH, rendering="software")
        rounded = {k: [round(x, 3) for x in v] if isinstance(v, list) else round(v, 1) for k, v in measured.items()}
        args.json.write_text(json.dumps(settings | {"measured": rounded}, indent=1) + "\n")


if __name__ == "__main__":
    main()
