"""Write the tables and the figure of README.md from the files in results/.

    python benchmarks/readme.py [--check]

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; everything else in README.md is left alone. Tables of all
methods come from results/tables/DATA/ as soon as it has every method of results/compare/DATA.json, until then from
there. With --check nothing is written, and the exit status is 1 where README.md differs. `tests/test_numbers.py`
makes the same comparison.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
PROTOCOLS = {"knn1": "1-NN", "knn20": "20-NN", "linear": "linear", "labels_1": "1% of the labels", "labels_10": "10%"}
TITLES = dict(
    isd="ISD", isd_predictor="ISD with a predictor", isd_by_hand="ISD, set by hand", moco_v2="MoCo v2", co2="CO2",
    byol="BYOL", byol_asym="BYOL-asym", simsiam="SimSiam", simclr="SimCLR", swav="SwAV", compress="CompRess",
    pirl="PIRL", invp="InvP", supervised="trained with labels", pixels="raw pixels", untrained="untrained net",
    student="ISD, student", teacher="ISD, teacher", ressl="ReSSL", sce="SCE", msf="mean-shift",
)


def read(path: Path) -> dict[str, Any]:
    "One saved result."
    return json.loads(path.read_text())


def table(head: list[str], rows: list[list[str]]) -> str:
    "Cells as a Markdown table."
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def row(name: str, scores: Mapping[str, float], columns: Mapping[str, str], bold: bool = False) -> list[str]:
    "The cells of one method; a protocol without a score is a dash."
    title = TITLES.get(name, name.replace("_", " "))
    return [f"**{title}**" if bold else title, *(f"{scores[c]:.3f}" if c in scores else "-" for c in columns)]


def one_recipe(results: Path, recipe: str) -> str:
    "Medians over the seeds of `isd_train --recipe ...`."
    runs = [read(p) for p in sorted(results.glob(f"{recipe}-[0-9]*.json"))]
    columns = {k: PROTOCOLS[k] for k in ("knn1", "knn20", "linear")}
    rows = []
    for name in ("pixels", "untrained", "student", "teacher", "supervised"):
        scores = {c: median(r[f"{c}_{name}"] for r in runs) for c in columns}
        seen = {"pixels": 0, "untrained": 0, "supervised": runs[0]["images_seen_supervised"]}
        rows.append([*row(name, scores, columns, name == "teacher"), f"{seen.get(name, runs[0]['images_seen']):,}"])
    commands = ", ".join(f"`{r['command']}`" for r in runs)
    head = [f"{runs[0]['test_images']:,} test images", *columns.values(), "images seen"]
    return f"{table(head, rows)}\n\n{f'Medians of {len(runs)} seeds' if len(runs) > 1 else 'One seed'}: {commands}."


class Scores(NamedTuple):
    "What a table of methods is made of."
    of: dict[str, list[Mapping[str, float]]]  # by method, one for each seed or split
    images_seen: int
    command: str


def evaluated(scores: Mapping[str, Any]) -> Mapping[str, float]:
    "The teacher's scores where there is one, else the student's."
    return scores.get("teacher", scores.get("student"))


def scores_of(results: Path, data: str) -> Scores:
    "All runs of the final table; of the earlier comparison where there is no table."
    found: dict[str, list[Mapping[str, float]]] = defaultdict(list)
    files = sorted((results / "tables" / data).glob("*.json"))
    for path in files:
        name, run = path.stem.rpartition("-")[0], read(path)
        for part, scores in run["scores"].items() if name == "baselines" else [(name, evaluated(run["scores"]))]:
            found[part].append(scores)
    if files:
        isd = next(read(path) for path in files if path.stem.rpartition("-")[0] == "isd")
        return Scores(found, isd["images_seen"], isd["command"])
    saved = read(results / "compare" / f"{data}.json")
    for run in saved["runs"]:
        found[run["method"]].append(evaluated(run["scores"]))
    for run in saved["baselines"]:
        for part, scores in run["scores"].items():
            found[part].append(scores)
    return Scores(found, saved["runs"][0]["images_seen"], saved["command"])


def whole_command(command: str) -> str:
    "The command of a table without the rows that one call of it made: it makes all of them."
    return command.partition(" --methods ")[0] if "table.py" in command else command


def all_methods(results: Path, data: str) -> str:
    "Means over seeds, the best 20-NN first."
    given = scores_of(results, data)
    means = {
        name: {c: mean(s[c] for s in scores) for c in PROTOCOLS if all(c in s for s in scores)}
        for name, scores in given.of.items()
    }
    columns = {c: title for c, title in PROTOCOLS.items() if c in means["isd"]}
    order = sorted(means, key=lambda name: -means[name]["knn20"])
    rows = [row(name, means[name], columns, name == "isd") for name in order]
    runs = sorted({len(scores) for name, scores in given.of.items() if name not in ("pixels", "untrained")})
    how_many = "one run each" if runs == [1] else f"means of {' to '.join(map(str, runs[:1] + runs[1:][-1:]))} runs"
    note = f"{given.images_seen:,} images seen by each, {how_many}: `{whole_command(given.command)}`."
    return f"{table(['', *columns.values()], rows)}\n\n{note}"


def against(ratio: float) -> str:
    "How many times slower than ours, or faster."
    return f"{ratio:.1f}x slower" if ratio >= 1 else f"{1 / ratio:.1f}x faster"


def rates(found: Mapping[str, Mapping[str, float]], titles: Mapping[str, str]) -> str:
    "The contestants that took part, each with its rate and how it stands to ours."
    return ", ".join(f"{title} {found[key]['images_per_second']:,} ({against(found[key]['ratio'])})"
                     for key, title in titles.items() if key in found)


def speed(results: Path) -> str:
    "Medians of the benchmarks, with how many times slower the others are."
    bench = results / "bench"
    rows = []
    for file, name in (("step", "training step, five-layer net, 16,384 anchors"), ("step_blur", "the same with blur")):
        found = read(bench / f"{file}.json")["results"]
        others = rates(found, dict(plain="usual pipeline", lightly="lightly", tuned="tuned by hand"))
        command = "python benchmarks/step.py" + " --blur" * (file == "step_blur")
        rows.append([f"{name}: `{command}`", f"{found['ours']['images_per_second']:,} images/s", others])
    views = next(r for r in read(bench / "views.json")["results"] if r["size"] == 32 and r["blur"])["results"]
    others = rates(views, {"torchvision PIL, 2 workers": "torchvision", "kornia, batch": "kornia"})
    rows.append(["strong views of 32 x 32 pixels: `python benchmarks/views.py`",
                 f"{views['ours, batch']['images_per_second']:,} images/s", others])
    loss = [r for r in read(bench / "loss.json")["rows"] if "streaming" in r["ratio_quartiles"]][-1]  # the full fits
    memory, ratio = loss["growth_mb"], loss["ratio_quartiles"]["streaming"][1]
    rows.append([f"loss and gradient, {loss['anchors']:,} anchors: `python benchmarks/loss.py`",
                 f"{memory['streaming']:.1f} MB", f"full matrix {memory['full']:.0f} MB ({against(ratio)})"])
    race = read(bench / "race.json")
    titles = dict(plain="usual pipeline", lightly="lightly", tuned="tuned by hand")
    for method, name in (("isd", "ISD"), ("moco_v2", "MoCo v2")):
        found = race["summary"][method]
        per_step = {key: f"; {against(ratio)} per step" for key, ratio in found.get("slower_per_step", {}).items()}
        others = [f"{title} {found['seconds'][key]:.0f} s ({against(found['slower_than_ours'][key])}"
                  f"{per_step.get(key, '')})" for key, title in titles.items() if key in found["seconds"]]
        command = race["command"].partition(" --minutes")[0]
        rows.append([f"{name} on digits to a 20-NN accuracy of {found['mark']}: `{command}`",
                     f"{found['seconds']['ours']:.0f} s", ", ".join(others)])
    return table(["on two CPU cores", "here", "others"], rows)


BLOCKS: dict[str, Callable[[Path], str]] = {
    "digits": lambda results: one_recipe(results, "digits"),
    "cifar10": lambda results: one_recipe(results, "cifar10_small"),
    "methods-digits": lambda results: all_methods(results, "digits"),
    "methods-cifar10": lambda results: all_methods(results, "cifar10_small"),
    "speed": speed,
}


def filled(text: str, results: Path = RESULTS) -> str:
    "README's text with every table made anew; a table that is not marked is an error."
    for name, make in BLOCKS.items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise SystemExit(f"README.md must hold {start.strip()} and {end.strip()} once each")
        before, rest = text.split(start)
        text = before + start + make(results) + end + rest.split(end)[1]
    return text


class Curves(NamedTuple):
    "ISD's accuracy while it learns, and what it must pass."
    runs: list[list[tuple[float, float]]]  # (images seen, 20-NN accuracy of the teacher)
    pixels: float
    untrained: float


def learning_curves(results: Path) -> Curves:
    "From the runs of the recipe."
    saved = [read(p) for p in sorted(results.glob("digits-[0-9]*.json"))]
    points = [[(r["images_seen"], r["knn20_teacher"]) for r in run["curve"]] for run in saved]
    return Curves(points, *(median(run[f"knn20_{name}"] for run in saved) for name in ("pixels", "untrained")))


def draw(results: Path, path: Path) -> None:
    "README's figure."
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    given = learning_curves(results)
    passed = max(next(x for x, y in run if y > given.pixels) for run in given.runs)
    fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
    for number, run in enumerate(given.runs):
        seen, accuracy = zip(*run)
        label = None if number else "ISD's teacher, one line per run"
        ax.plot([x / 1000 for x in seen], accuracy, color="#0072B2", alpha=0.8, label=label)
    ax.axhline(given.pixels, color="#D55E00", ls="--", label="raw pixels")
    ax.axhline(given.untrained, color="#777777", ls=":", label="untrained network")
    ax.set(xlabel="thousands of images seen", ylabel="20-NN accuracy (test digits)", ylim=(0.4, 1))
    ax.set_title(f"Without a label: past raw pixels within {passed:,.0f} images", fontsize=11)
    ax.legend(loc="lower right", fontsize=8)
    fig.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where README.md differs")
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = filled(old)
    if parser.parse_args().check:
        sys.exit(old != new)
    readme.write_text(new)
    draw(RESULTS, RESULTS / "figures" / "learning.png")


if __name__ == "__main__":
    main()
