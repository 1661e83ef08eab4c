"""Numbers on pages are those of the saved results, and the figure of README shows ISD above raw pixels."""
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import pythons  # noqa: E402
import readme  # noqa: E402

TEXT = (ROOT / "README.md").read_text()


def test_tables_of_readme_are_the_saved_results() -> None:
    assert readme.filled(TEXT) == TEXT, "run python benchmarks/readme.py"


def test_the_table_of_pythons_is_what_was_saved() -> None:
    page = pythons.PAGE.read_text()
    assert pythons.written(page, pythons.read()) == page, "run python tests/pythons.py"
    assert pythons.counts("3 passed in 1s\n2 failed, 9 passed, 1 skipped in 1.0s\nmake: *** Error") == {
        "failed": 2, "passed": 9, "skipped": 1}


def test_every_rival_of_a_step_is_in_the_table() -> None:
    "Two processes of ours are no rival."
    lines = readme.speed(ROOT / "results").splitlines()
    for name in ("step", "step_blur"):
        found = json.loads((ROOT / "results" / "bench" / f"{name}.json").read_text())["results"]
        rivals = [row["images_per_second"] for key, row in found.items() if not key.startswith("ours")]
        line, = (line for line in lines if f"{found['ours']['images_per_second']:,} images/s" in line)
        assert len(rivals) == 3 and all(f" {rate:,} (" in line for rate in rivals)


@pytest.mark.parametrize("name", readme.BLOCKS)
def test_every_table_has_rows_and_its_command(name: str) -> None:
    block = TEXT.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]
    assert len([line for line in block.splitlines() if line.startswith("|")]) >= 5
    assert re.search(r"`(isd_|python benchmarks/)", block)


def test_no_accuracy_outside_the_tables() -> None:
    prose = TEXT
    for name in readme.BLOCKS:
        prose = prose.replace(prose.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0], "")
    assert not re.findall(r"\b0\.\d{3}\b|\d\.\dx", prose), "numbers belong into a table of benchmarks/readme.py"


def test_a_changed_result_changes_its_table_alone(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results", tmp_path / "results")
    for path in (tmp_path / "results").glob("digits-[0-9]*.json"):
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | {"knn20_teacher": 0.123}))
    new = readme.filled(TEXT, tmp_path / "results")
    changed = [(a, b) for a, b in zip(TEXT.splitlines(), new.splitlines()) if a != b]
    assert len(changed) == 1 and "0.123" in changed[0][1] and "teacher" in changed[0][0]


def test_runs_of_the_table_are_preferred(tmp_path: Path) -> None:
    folder = tmp_path / "tables" / "digits"
    folder.mkdir(parents=True)
    scores = {"knn1": 0.5, "knn20": 0.75, "linear": 0.25}
    run = dict(scores={"student": scores, "teacher": scores | {"knn20": 1.0}}, images_seen=1024, command="python x")
    baseline = dict(scores={"pixels": scores, "untrained": scores | {"knn20": 0.5}}, command="python x")
    for split in (1, 2):
        (folder / f"isd-{split}.json").write_text(json.dumps(run))
        (folder / f"baselines-{split}.json").write_text(json.dumps(baseline))
    lines = readme.all_methods(tmp_path, "digits").splitlines()
    assert lines[2:5] == ["| **ISD** | 0.500 | 1.000 | 0.250 |", "| raw pixels | 0.500 | 0.750 | 0.250 |",
                          "| untrained net | 0.500 | 0.500 | 0.250 |"]
    assert "1,024 images seen by each, means of 2 runs: `python x`" in lines[-1]


def test_the_figure_is_of_the_recipe(tmp_path: Path) -> None:
    curve = [{"images_seen": 0, "knn20_teacher": 0.1}, {"images_seen": 1024, "knn20_teacher": 0.9}]
    for seed in (0, 1):
        run = dict(curve=curve, knn20_pixels=0.5, knn20_untrained=0.25 * (1 + seed))
        (tmp_path / f"digits-{seed}.json").write_text(json.dumps(run))
    assert readme.learning_curves(tmp_path) == ([[(0, 0.1), (1024, 0.9)]] * 2, 0.5, 0.375)


def test_the_figure_shows_isd_above_raw_pixels() -> None:
    given = readme.learning_curves(readme.RESULTS)
    assert all(run[-1][1] > max(given.pixels, given.untrained) for run in given.runs)
    assert (readme.RESULTS / "figures" / "learning.png").stat().st_size < 100_000


def test_links_of_readme_lead_somewhere() -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", TEXT) if not t.startswith("http")]
    assert targets and not [t for t in targets if not (ROOT / t).exists()]


def test_the_start_is_short_and_ends_above_raw_pixels() -> None:
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text())["cells"]
    assert sum(len("".join(c["source"]).split()) for c in cells if c["cell_type"] == "markdown") < 600
    shown = "".join("".join(o.get("text", "")) for c in cells if c["cell_type"] == "code" for o in c["outputs"])
    found = re.search(r"ISD ([\d.]+), raw pixels ([\d.]+), untrained network ([\d.]+)", shown)
    assert found and float(found[1]) > max(float(found[2]), float(found[3]))
