"""Draw a picture of every saved benchmark.

    python benchmarks/plot.py [NAME ...]      # reads results/bench/NAME.json, writes results/bench/NAME.png

Pictures of races are written to results/figures.
"""
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

FOLDER = Path(__file__).parent.parent / "results" / "bench"
FIGURES = FOLDER.parent / "figures"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"


def bars(ax: Axes, values: dict[str, float], title: str, label: str, form: str = "{:,.0f}") -> None:
    "Horizontal bars with their numbers; ours are blue."
    names = list(values)[::-1]
    colours = [BLUE if name.startswith(("ours", "isd_nb")) else GREY for name in names]
    found = ax.barh(names, [values[name] for name in names], color=colours)
    ax.bar_label(found, [form.format(values[name]) for name in names], padding=3, fontsize=8)
    ax.set(title=title, xlabel=label, xlim=(0, 1.2 * max(values.values())))
    ax.spines[["top", "right"]].set_visible(False)


def axes(count: int, high: float = 2.6) -> list[Axes]:
    return plt.subplots(1, count, figsize=(4.6 * count, high), squeeze=False)[1][0].tolist()


def views(saved: dict[str, Any]) -> None:
    for ax, result in zip(axes(len(saved["results"])), saved["results"]):
        speed = {name: row["images_per_second"] for name, row in result["results"].items()}
        bars(ax, speed, f"Strong views, {'with' if result['blur'] else 'without'} blur", "images a second")


def loss(saved: dict[str, Any]) -> None:
    left, right = axes(2)
    for name, label, colour in (("streaming", "streaming", BLUE), ("bfloat16", "streaming, bfloat16", GREEN)):
        rows = [row for row in saved["rows"] if name in row["ratio_quartiles"]]
        if rows:
            low, middle, high = zip(*(row["ratio_quartiles"][name] for row in rows))
            sizes = [row["anchors"] for row in rows]
            left.fill_between(sizes, low, high, color=colour, alpha=0.2, lw=0)
            left.semilogx(sizes, middle, "o-", color=colour, label=label)
    left.legend()
    left.axhline(1, ls="--", color=GREY)
    left.set(title="Time: full matrix / streaming", xlabel="anchors", ylabel="ratio (band: quartiles)", ylim=(0, None))
    for name, colour, mark in (("full", ORANGE, "s--"), ("streaming", BLUE, "o-"), ("bfloat16", GREEN, "^-")):
        held = {row["anchors"]: row["growth_mb"][name] for row in saved["rows"] if name in row["growth_mb"]}
        right.loglog(list(held), list(held.values()), mark, color=colour, label=name)
    right.set(title="Memory of one pass beside the queue", xlabel="anchors", ylabel="MB")
    right.legend()


def knn(saved: dict[str, Any]) -> None:
    sizes = saved["settings"]
    title = f"Exact search: {sizes['test']:,} queries, {sizes['train']:,} keys"
    bars(axes(1)[0], saved["seconds"], title, "seconds", "{:.2f}")


def step(saved: dict[str, Any]) -> None:
    speed = {name: row["images_per_second"] for name, row in saved["results"].items()}
    views = "the authors' views, with blur" if saved.get("blur") else "views without blur"
    bars(axes(1)[0], speed, f"Whole training step, {views}", "images a second")


def step_blur(saved: dict[str, Any]) -> None:
    step(saved)


def tuned(saved: dict[str, Any]) -> None:
    speed = {name: row["images_per_second"] for name, row in saved["results"].items()}
    bars(axes(1)[0], speed, "The tuned peer and attempts to speed it up", "images per second")


def threads(saved: dict[str, Any]) -> None:
    busy = f"beside {saved['neighbours']} busy process" + "es" * (saved["neighbours"] > 1)
    for ax, (name, title) in zip(axes(2), (("quiet", "quiet machine"), ("busy", busy))):
        labels = {"chosen": "ours, chosen while training", "one": "one thread", "all": "all threads"}
        rates = {labels[kind]: row[name] for kind, row in saved["medians"].items()}
        bars(ax, rates, f"Training on digits, {title}", "images per second")


def race(saved: dict[str, Any]) -> None:
    colours = dict(ours=BLUE, tuned=GREEN, plain=ORANGE, lightly=GREY)
    styles = dict(ours="-", tuned="--", plain="-.", lightly=":")
    names = dict(isd="ISD", moco_v2="MoCo v2")
    titles = dict(ours="this book", tuned="tuned by hand", plain="usual pipeline", lightly="lightly")
    methods = list(dict.fromkeys(run["method"] for run in saved["runs"]))
    for ax, method in zip(axes(len(methods), 3.2), methods):
        seen: set[str] = set()
        for run in (run for run in saved["runs"] if run["method"] == method):
            name, rows = run["contestant"], run["rows"][1:]  # the untrained net has no place on a logarithmic axis
            ax.semilogx([row["seconds"] for row in rows], [row["knn20"] for row in rows], styles[name],
                        color=colours[name], alpha=0.8, label=None if name in seen else titles[name])
            seen.add(name)
        found = saved["summary"].get(method)
        if found:
            ax.axhline(found["mark"], lw=0.6, color="black")
        lines = [", ".join(f"{titles[name]} {ratio:.1f}x" for name, ratio in found[key].items() if name != "ours")
                 for key in ("slower_than_ours", "slower_per_step") if key in found] if found else [""]
        title = "no mark that all reach"
        if lines[0]:
            to_mark = f"seconds by those of this book,\nto {found['mark']:g}: {lines[0]}"
            title = "\nper step: ".join([to_mark, *lines[1:]])
        ax.set_title(f"{names[method]}: {title}", fontsize=8)
        ax.set(xlabel="seconds of training", ylabel="20-NN accuracy, teacher")
        ax.legend(fontsize=8)


def race_busy(saved: dict[str, Any]) -> None:
    race(saved)


def race_cifar10(saved: dict[str, Any]) -> None:
    race(saved)


def parts(saved: dict[str, Any]) -> None:
    ax, rows = axes(1)[0], saved["rows"]
    times = {name: row["milliseconds"] for name, row in rows.items()}
    bars(ax, times, "One step, by kind of operation", "milliseconds", "{:.1f}")
    for place, row in enumerate(list(rows.values())[::-1]):
        if row["floor"]:
            ax.plot([row["floor"]] * 2, [place - 0.4, place + 0.4], color=ORANGE, lw=2)
    ax.plot([], color=ORANGE, lw=2, label="at the rate of a large product")
    ax.legend(fontsize=8, loc="center right")


def scaling(saved: dict[str, Any]) -> None:
    labels = dict(batch="images in a batch", size="height and width, pixels", processes="processes")
    for ax, (kind, rows) in zip(axes(len(saved["results"])), saved["results"].items()):
        cost = {int(case): row["microseconds"] for case, row in rows.items()}
        ax.plot(list(cost), list(cost.values()), "o-", color=BLUE)
        ax.set(title=f"Cost against {kind}", xlabel=labels[kind], ylabel="microseconds an image",
               ylim=(0, 1.1 * max(cost.values())))
        if kind == "processes":
            ax.set_xticks(list(cost))
        else:
            ax.set_xscale("log", base=2)
            ax.set_xticks(list(cost), list(cost))


def equivalence(saved: dict[str, Any]) -> None:
    ax = axes(1)[0]
    for name, colour, mark in zip(saved["knn20_teacher"], (BLUE, ORANGE), ("o-", "s--")):
        for n, scores in enumerate(saved["knn20_teacher"][name].values()):
            seen = [saved["steps"] * saved["batch"] * i / (len(scores) - 1) for i in range(len(scores))]
            ax.plot(seen, scores, mark, color=colour, label=None if n else name.replace("_", " "), alpha=0.8)
    ax.set(title=f"Recipe {saved['recipe']}, every seed in two forms", xlabel="images seen", ylabel="20-NN, teacher")
    ax.xaxis.set_major_formatter(lambda images, _: f"{images / 1000:g}k")
    ax.legend()


def equivalence_loss(saved: dict[str, Any]) -> None:
    equivalence(saved)


def explorer(saved: dict[str, Any]) -> None:
    left, right = axes(2)
    times = {f"{name.removesuffix('_seconds').replace('_', ' ')}": statistics.median(values)
             for name, values in saved["measured"].items() if name.endswith("_seconds")}
    bars(left, times, f"Explorer, {saved['images']:,} images", "seconds, median", "{:.2f}")
    rates = saved["measured"]["frames_per_second"]
    right.plot(rates, "o-", color=BLUE)
    right.axhline(15, ls="--", color=GREY)
    right.set(title="Points gliding, no GPU", xlabel="glide", ylabel="frames a second", ylim=(0, None))


def controls(saved: dict[str, Any]) -> None:
    times = {f"{lesson.partition('_')[0]}: {name.replace('_', ' ')}": row["median"]
             for lesson, found in saved["milliseconds"].items() for name, row in found.items()}
    ax = axes(1, 3.4)[0]
    bars(ax, times, "Controls of the lessons", "milliseconds a picture, median")
    ax.axvline(100, ls="--", color=ORANGE)


def pages(saved: dict[str, Any]) -> None:
    ax = axes(1, 3.4)[0]
    seconds = {name.rpartition("/")[2].replace("_", " "): row["seconds"] for name, row in saved["pages"].items()}
    bars(ax, seconds, "The start page and the lessons",
         f"seconds from Run All Cells to the last output, {saved['rounds']} round{'s' * (saved['rounds'] > 1)}")
    ax.axvline(60, ls="--", color=ORANGE)


def gpu(saved: dict[str, Any]) -> None:
    for ax, row in zip(axes(len(saved["steps"])), saved["steps"]):
        speed = dict(ours=row["images_per_second"], plain=row["plain_images_per_second"])
        bars(ax, speed, f"{saved['network']}, batch {row['batch']}", "images a second")


PLOTS: dict[str, Callable[[dict[str, Any]], None]] = {f.__name__: f for f in (
    views, loss, knn, step, step_blur, tuned, race, race_busy, race_cifar10, threads, parts, scaling, equivalence,
    equivalence_loss, explorer, controls, pages, gpu)}


def save(name: str, source: Path, target: Path) -> None:
    "Draw one saved benchmark as a small PNG."
    saved = json.loads(source.read_text())
    PLOTS[name](saved)
    machine = saved.get("gpu") or saved.get("processor") or saved.get("machine", "")
    machine += f", {saved.get('threads') or saved.get('cores')} threads"
    plt.gcf().text(0.995, 0.005, machine, fontsize=7, ha="right", color="#666666")
    plt.gcf().tight_layout()
    plt.savefig(target, dpi=100)
    plt.close()
    Image.open(target).convert("RGB").quantize(64).save(target, optimize=True)


def main() -> None:
    for name in sys.argv[1:] or PLOTS:
        if name not in PLOTS:
            sys.exit(f"unknown benchmark {name}; known: {', '.join(PLOTS)}")
        if (FOLDER / f"{name}.json").exists():
            target = (FIGURES if name.startswith("race") else FOLDER) / f"{name}.png"
            save(name, FOLDER / f"{name}.json", target)
            print(target)


if __name__ == "__main__":
    main()
