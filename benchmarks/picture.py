"""Photograph the explorer of a run, for the README.

    isd_train --seed 1 --out runs/digits-1
    python benchmarks/picture.py runs/digits-1 results/figures [--query 0]

Writes explorer.png (the page as it opens, one image chosen) and explorer_both.png (the maps of teacher and student side
by side, early in training and at its end), each below 100 KB. Needs Chromium (`make browser`).
"""
import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from browser import chromium
from playwright.sync_api import Page

from isd_nb.explore.explorer import Explorer


def photograph(page: Page, selector: str, colours: int = 128) -> Image.Image:
    "A part of the page, with few colours."
    page.wait_for_selector(".isd-explorer[data-state=ready][data-gliding=no]")
    page.wait_for_function("() => ![...document.querySelectorAll('canvas.isd-image')].some(c => !c.dataset.drawn)")
    return Image.open(io.BytesIO(page.locator(selector).first.screenshot())).convert("RGB").quantize(colours, dither=0)


def trimmed(picture: Image.Image, label: str) -> Image.Image:
    "Without the frame and the empty rows, and with a label in the corner."
    inside = picture.convert("RGB").crop((2, 2, picture.width - 2, picture.height - 2))
    _, top, _, bottom = ImageChops.invert(inside).getbbox()
    inside = inside.crop((0, max(0, top - 6), inside.width, bottom + 12))
    ImageDraw.Draw(inside).text((8, inside.height - 22), label, fill="black", font_size=14)
    return inside


def choose(page: Page, name: str, value: str) -> None:
    "Set a control as a reader would."
    page.locator(f"[name={name}]").evaluate(
        "(e, v) => { e.value = v; for (const k of ['input', 'change']) e.dispatchEvent(new Event(k)); }", value)


def both_maps(page: Page, steps: int) -> Image.Image:
    "Teacher and student, at an early checkpoint above, at the last one below."
    choose(page, "encoder", "both")
    found = []
    for step in (min(1, steps - 1), steps - 1):
        choose(page, "step", str(step))
        page.wait_for_function("s => document.querySelector('.isd-explorer').explorer.state.step === s", arg=step)
        label = page.locator(".isd-step").inner_text()
        found.append(trimmed(photograph(page, ".isd-stage"), label))
    sheet = Image.new("RGB", (found[0].width, sum(f.height for f in found)), "white")
    for n, picture in enumerate(found):
        sheet.paste(picture, (0, sum(f.height for f in found[:n])))
    return sheet.quantize(128, dither=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--query", default="0", help="the image that is chosen")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    explorer = Explorer.from_run(args.run)
    with tempfile.TemporaryDirectory() as name, chromium(Path(name) / "profile") as context:
        page = context.new_page()
        page.set_viewport_size(dict(width=1280, height=760))
        page.emulate_media(reduced_motion="reduce")
        page.goto(explorer.html(Path(name) / "explorer.html").as_uri())
        choose(page, "query", args.query)
        pictures = dict(explorer=photograph(page, ".isd-explorer"))
        pictures["explorer_both"] = both_maps(page, len(explorer.gallery.steps))
    for title, picture in pictures.items():
        path = args.folder / f"{title}.png"
        picture.save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
