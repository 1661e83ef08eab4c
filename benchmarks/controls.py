"""Does the control of each lesson follow the hand? Milliseconds from a new value to the new picture.

    python benchmarks/controls.py [--json FILE] [--lessons 1 4] [--values 12]

The cells of a lesson run in a kernel of their own, as JupyterLab runs them, up to the one with `interactive_figure`.
Then each control takes `--values` values over its whole range, one after the other; a picture is ready when the widget
holds its PNG. The way to the browser, a picture of some ten kilobytes, is not counted. The goal is 100 ms.
"""
import argparse
import json
import statistics
from pathlib import Path

import nbformat
from common import about
from nbclient import NotebookClient

LESSONS = Path(__file__).parent.parent / "nbs" / "1_isd"
CONTROL = "interactive_figure("  # what the cell with the control holds
MEASURE = """
import json, time

def values_of(widget, count):
    "Values over the whole range of a control, in turns from both ends, so that each is new."
    if hasattr(widget, "options"):
        choices = list(getattr(widget, "_options_values", widget.options))
        return [choices[i % len(choices)] for i in range(1, count + 1)]
    if isinstance(widget.value, bool):
        return [i % 2 == 0 for i in range(count)]
    width = widget.max - widget.min
    steps = [round(i * width / widget.step / count) * widget.step for i in range(count)]
    return [widget.min + s if i % 2 else widget.max - s for i, s in enumerate(steps)]

taken = dict()
for name, widget in measured_figure.controls.items():
    taken[name] = []
    for value in values_of(widget, {count}):
        measured_figure.picture.cache_clear()  # a picture that was there before would cost nothing
        before, start = measured_figure.image.value, time.perf_counter()
        widget.value = value
        if measured_figure.image.value != before:  # a value that was there already draws nothing
            taken[name].append(1000 * (time.perf_counter() - start))
print("measured", json.dumps(taken))
"""


def measure(lesson: Path, count: int) -> dict[str, list[float]]:
    "By control of a lesson, the milliseconds of each new picture."
    notebook = nbformat.read(lesson, as_version=4)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    end = next(i for i, cell in enumerate(codes) if CONTROL in cell.source)
    last = codes[end].source.replace(CONTROL, f"measured_figure = {CONTROL}")
    measuring = nbformat.v4.new_code_cell(MEASURE.replace("{count}", str(count)))
    notebook.cells = [*codes[:end], nbformat.v4.new_code_cell(last), measuring]
    NotebookClient(notebook, timeout=600, resources=dict(metadata=dict(path=str(lesson.parent)))).execute()
    printed = "".join(output.text for output in notebook.cells[-1].outputs if output.output_type == "stream")
    return json.loads(printed.partition("measured ")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--lessons", type=int, nargs="+", default=range(1, 10))
    parser.add_argument("--values", type=int, default=12, help="new values for each control")
    args = parser.parse_args()
    found = {}
    for lesson in sorted(LESSONS.glob("*.ipynb")):
        if int(lesson.stem.partition("_")[0]) not in args.lessons:
            continue
        found[lesson.stem] = {name: dict(median=round(statistics.median(taken), 1), slowest=round(max(taken), 1),
                                         pictures=len(taken))
                              for name, taken in measure(lesson, args.values).items()}
        for name, row in found[lesson.stem].items():
            times = f"median {row['median']:6.1f} ms, slowest {row['slowest']:6.1f} ms"
            print(f"{lesson.stem:16}{name:22}{times}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(about("controls", values=args.values, milliseconds=found), indent=1) + "\n")


if __name__ == "__main__":
    main()
