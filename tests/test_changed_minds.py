"""Runs that get more steps, several protocols in one command, and normalisation that a user knows better."""
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision import models

import isd_nb
from conftest import call
from isd_nb.cli.embed import isd_embed as embed_command
from isd_nb.cli.evaluate import isd_eval as eval_command
from isd_nb.cli.explore import isd_explore as explore_command
from isd_nb.cli.train import isd_train as train_command
from isd_nb.encoders import BackboneConfig, FrozenEncoder, build_backbone
from isd_nb.engine.evaluate_source import Weights, expecting, resized_of
from isd_nb.engine.finish import train_supervised
from isd_nb.engine.runs import read_metrics, read_recipe
from isd_nb.engine.training import train as train_method
from isd_nb.engine.whole import report_read
from isd_nb.methods.networks import network_line
from isd_nb.protocols import scorer
from isd_nb.recipe import find_recipe
from isd_nb.sources.digits import digits
from isd_nb.sources.door import Sets, load_images

SHORT = replace(find_recipe("digits"), steps=4, batch_size=8, queue_size=16, width=4, projector=(8,), predictor=(8,),
                evaluations=1)
QUICK = ["--set", "queue_size=16", "--set", "width=4", "--set", "evaluations=1", "--set", "projector=[8]",
         "--set", "predictor=[8]", "--batch-size", "8"]
ALONE = ["--device", "cpu", "--threads", "1", "--processes", "1", "--no-figures", "--no-supervised"]
LABELLED = digits(size=16, copies=1)[0].subset(range(24))
IMAGES = replace(LABELLED, labels=None, classes=())  # no accuracy is measured: that takes longest


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A run of four steps that has ended, on 24 files without labels."
    place = tmp_path_factory.mktemp("begun")
    (place / "images").mkdir()
    for i, image in enumerate(IMAGES.images.numpy()):
        Image.fromarray(image[0]).save(place / "images" / f"{i:02}.png")
    data = f"folder:{place / 'images'}"
    fresh = ["--recipe", "digits", "--data", data, "--out", "run", "--steps", "4"]
    said = call(train_command, place, *fresh, *QUICK, *ALONE)
    assert not said.returncode, said.stderr
    return place / "run"


@pytest.fixture
def ended(begun: Path, tmp_path: Path) -> Path:
    "A copy of it."
    return Path(shutil.copytree(begun, tmp_path / "run"))


@pytest.fixture
def go_on(tmp_path: Path) -> Callable:
    "Resumes the run `run` with these options."
    return lambda *options: call(train_command, tmp_path, "--out", "run", "--resume", *options, *ALONE)


def test_a_run_that_has_ended_goes_on_with_more_steps(ended: Path, go_on: Callable) -> None:
    rows, weights = read_metrics(ended), load_file(ended / "encoder.safetensors")
    said = go_on("--steps", "8")
    assert not said.returncode, said.stderr
    now = read_metrics(ended)
    assert [row["step"] for row in now] == list(range(9)) and now[:5] == rows
    assert now[5]["learning_rate"] > now[4]["learning_rate"]
    line = next(line for line in said.stdout.splitlines() if "instead of" in line)
    assert line.startswith("8 steps instead of 4: the schedules are laid out anew over all steps, so that after step 4")
    assert "the learning rate goes from" in line
    assert "the teacher's momentum from" in line
    config = json.loads((ended / "config.json").read_text())
    assert (config["recipe"]["steps"], config["before"]) == (8, [{"step": 4, "epochs": None, "steps": 4}])
    assert json.loads((ended / "summary.json").read_text())["images_seen"] == 64
    after = load_file(ended / "encoder.safetensors")
    assert any(not torch.equal(value, after[name]) for name, value in weights.items())
    again = go_on()  # nothing is left to do, and nothing is noted twice
    assert not again.returncode and "instead of" not in again.stdout
    assert json.loads((ended / "config.json").read_text()) == config


def test_the_same_two_commands_give_the_same_weights(begun: Path, ended: Path, go_on: Callable, tmp_path: Path) -> None:
    other = Path(shutil.copytree(begun, tmp_path / "other"))
    assert not go_on("--set", "steps=8").returncode
    assert not call(train_command, tmp_path, "--out", "other", "--resume", "--steps", "8", *ALONE).returncode
    states = [torch.load(run / "checkpoints" / "state_00000008.pt", weights_only=True) for run in (ended, other)]
    torch.testing.assert_close(*(state["method"] for state in states), rtol=0, atol=0)


def test_epochs_take_the_place_of_steps(ended: Path, go_on: Callable) -> None:
    assert (few := go_on("--epochs", "1")).returncode and "begun with another recipe" in few.stderr
    assert not (said := go_on("--epochs", "2")).returncode, said.stderr  # three batches each
    recipe = read_recipe(ended)
    assert recipe.steps is None and recipe.epochs and read_metrics(ended)[-1]["step"] == 6
    assert not (said := go_on("--steps", "7")).returncode, said.stderr
    assert (read_recipe(ended).epochs, read_recipe(ended).steps) == (None, 7)
    assert [b["steps"] for b in json.loads((ended / "config.json").read_text())["before"]] == [4, None]


@pytest.mark.parametrize("options", ["--steps 3", "--steps 8 --seed 1", "--steps 8 --batch-size 16"])
def test_fewer_steps_and_other_settings_are_refused(options: str, ended: Path, go_on: Callable) -> None:
    before = (ended / "config.json").read_bytes()
    said = go_on(*options.split())
    assert said.returncode and "resume it without these options" in said.stderr and "--init run" in said.stderr
    assert (ended / "config.json").read_bytes() == before


def test_weights_to_start_from_are_another_recipe(ended: Path, go_on: Callable) -> None:
    before = (ended / "config.json").read_bytes()
    said = go_on("--steps", "8", "--init", "shipped:cifar10")  # a network that the run does not have
    assert said.returncode and "changed from init '' to 'shipped:cifar10', steps 4 to 8" in said.stderr
    assert "resume it without these options" in said.stderr and "tensor" not in said.stderr
    assert (ended / "config.json").read_bytes() == before


def test_more_steps_need_a_checkpoint(ended: Path, go_on: Callable) -> None:
    for path in (ended / "checkpoints").glob("state_*.pt"):
        path.unlink()
    said = go_on("--steps", "8")
    assert said.returncode and "checkpoints (checkpoints/state_*.pt) are gone" in " ".join(said.stderr.split())


def test_a_run_in_python_goes_on_with_more_steps(tmp_path: Path) -> None:
    isd_nb.train(SHORT, IMAGES, tmp_path / "run", device="cpu", threads=1)
    rows = read_metrics(tmp_path / "run")
    with pytest.warns(UserWarning, match="8 steps instead of 4"):
        left = isd_nb.train(replace(SHORT, steps=8), IMAGES, tmp_path / "run", resume=True, device="cpu", threads=1)
    now = read_metrics(tmp_path / "run")
    assert left.summary["images_seen"] == 64 and len(now) == 9 and now[:5] == rows
    with pytest.raises(isd_nb.InputError, match="begun with another recipe"):
        isd_nb.train(SHORT, IMAGES, tmp_path / "run", resume=True, device="cpu", threads=1)


@pytest.mark.filterwarnings("ignore:2 steps instead of 1")
def test_the_comparison_with_labels_gets_its_share_of_more_steps(tmp_path: Path) -> None:
    for steps in (4, 8):
        train_supervised(replace(SHORT, steps=steps), LABELLED, tmp_path, steps == 8, "cpu", show=False, threads=1)
    assert read_metrics(tmp_path / "supervised")[-1]["step"] == 2


def test_studies_refuse_another_number_of_steps(tmp_path: Path) -> None:
    "Their runs are compared at a budget: none gets a schedule with a jump in it."
    train_method(SHORT, IMAGES, tmp_path / "run", device="cpu", threads=1, show=False)
    with pytest.raises(isd_nb.InputError, match="changed from steps 4 to 8"):
        train_method(replace(SHORT, steps=8), IMAGES, tmp_path / "run", resume=True, device="cpu", show=False)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A folder of two classes, and beside it the file `net.pth`, a state_dict of another library."
    place, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for part, label, count in (("train", "a", 12), ("train", "b", 12), ("test", "a", 4), ("test", "b", 4)):
        (place / "images" / part / label).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 128 + 127 * (label == "b"), (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "images" / part / label / f"{i:02}.png")
    torch.manual_seed(0)
    torch.save(models.resnet18(num_classes=2).state_dict(), place / "net.pth")
    return place


EVAL = ["--encoder", "net.pth", "--data", "folder:images", "--size", "32", "--device", "cpu", "--threads", "1",
        "--min-steps", "5", "--epochs", "1", "--seeds", "2", "--fractions", "0.5"]


def saved_rows(place: Path) -> dict[str, list]:
    return {path.name: json.loads(path.read_text())["rows"] for path in place.glob("runs/sources/*/eval/*.json")}


def test_several_protocols_are_answered_by_one_command(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Each is saved as alone, all stand in one table, and the images are embedded once."
    passes, groups = [], scorer.feature_groups
    monkeypatch.setattr("isd_nb.protocols.answers.feature_groups",
                        lambda *given, **how: passes.append(1) or groups(*given, **how))
    together = call(eval_command, labelled, *EVAL, "--protocol", "knn, linear,few-labels,knn")
    assert not together.returncode, together.stderr
    assert len(passes) == 1
    lines = together.stdout.splitlines()
    table = next(i for i, line in enumerate(lines) if line.startswith("encoder"))
    assert lines[table].split()[:3] == ["encoder", "protocol", "labels"]
    assert lines[table - 1].startswith("knn, linear, few-labels on ")
    assert [line.split()[1] for line in lines[table + 1:table + 4]] == ["knn", "linear", "few-labels"]
    files = saved_rows(labelled)
    shutil.rmtree(labelled / "runs")
    for protocol in ("knn", "linear", "few-labels"):
        assert not call(eval_command, labelled, *EVAL, "--protocol", protocol).returncode
    assert files == saved_rows(labelled)


def test_a_wrong_name_among_protocols_is_refused_before_anything_is_computed(labelled: Path) -> None:
    said = call(eval_command, labelled, *EVAL, "--protocol", "knn,linaer")
    assert said.returncode and "did you mean 'linear'" in said.stderr and not said.stdout


def test_a_normalisation_that_is_known_better_is_taken(labelled: Path) -> None:
    "The features are those of the network on images normalised so, and the line that states what was found has them."
    half = ["--mean", "0.5,0.5,0.5", "--std", "0.25,0.5,0.25"]
    shared = ["--data", "folder:images", "--size", "32"]
    said = call(embed_command, labelled, "net.pth", "--out", "f.npy", "--device", "cpu", *shared, *half)
    assert not said.returncode, said.stderr
    assert "normalisation given, mean 0.5, 0.5, 0.5; std 0.25, 0.5, 0.25" in said.stdout
    assert "becomes 32 pixels, bilinear" in said.stdout
    encoder = isd_nb.load_encoder(labelled / "net.pth")
    encoder.mean.fill_(0.5)
    encoder.std.copy_(torch.tensor([0.25, 0.5, 0.25])[:, None, None])
    images = load_images(f"folder:{labelled / 'images'}", 32, labelled / "data")[0]
    found = torch.from_numpy(np.load(labelled / "f.npy"))[:len(images)]
    torch.testing.assert_close(found, isd_nb.embed(encoder, images))
    rows = [call(eval_command, labelled, *EVAL, *more) for more in (half, [])]
    assert not any(row.returncode for row in rows)
    assert rows[0].stdout.splitlines()[-1] != rows[1].stdout.splitlines()[-1]  # where the rows are saved
    made = call(explore_command, labelled, "--encoder", "net.pth", "--report", "tables", *shared, *half)
    assert not made.returncode, made.stderr


@pytest.mark.parametrize("options, words", [
    ("--mean 0.5,0.5,0.5", "give both"), ("--mean 0.5,x,1 --std 1,1,1", "--mean takes numbers"),
    ("--mean 0.5 --std 0.5", "the mean has 1 numbers"), ("--mean 123,116,103 --std 1,1,1", "divide"),
    ("--mean 0.5,0.5,0.5 --std 0,1,1", "the std is of pixels")])
def test_a_normalisation_that_cannot_be_is_refused(options: str, words: str, labelled: Path) -> None:
    said = call(eval_command, labelled, *EVAL, *options.split())
    assert said.returncode and words in said.stderr and len(said.stderr.splitlines()) == 1


def test_a_run_keeps_its_own_normalisation(labelled: Path) -> None:
    for command in (eval_command, explore_command):
        said = call(command, labelled, "run", "--mean", "0.5", "--std", "0.5")
        assert said.returncode and "--mean and --std go with --encoder" in said.stderr


def test_files_are_resized_as_the_library_of_the_weights_has_it() -> None:
    "timm's crop_pct is 0.95 for resnet18, 0.875 for mobilenetv3_small_050; what is not its own keeps 8/7."
    encoder = FrozenEncoder(build_backbone(BackboneConfig("tiny")), [0.5] * 3, [0.5] * 3)
    for name, whose, side in (("timm:resnet18", "timm", 235), ("timm:resnet18", "timm's", 235),
                              ("timm:mobilenetv3_small_050", "timm", 256), ("torchvision:resnet50", "torchvision", 232),
                              ("torchvision:resnet50", "torchvision's", 256), ("timm:resnet18", "ImageNet's", 256)):
        encoder.config, encoder.metadata = BackboneConfig(name, stem="large"), {"preprocessing": whose}
        assert resized_of(encoder, 224) == side
        expecting(encoder, Weights(name, (0.4,) * 3, (0.3,) * 3))  # --mean and --std change the numbers, not the cut
        assert encoder.metadata["normalisation"].startswith("given") and resized_of(encoder, 224) == side
    assert resized_of(encoder, 64) is None


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> str:
    "A folder of images of 200 pixels, as `--data` names it."
    place = tmp_path_factory.mktemp("photographs")
    for i in range(8):
        Image.new("RGB", (220, 200), (20 * i, 100, 50)).save(place / f"{i}.png")
    return f"folder:{place}"


def test_python_states_the_size_of_views_as_the_command_does(photographs: str, tmp_path: Path) -> None:
    recipe = replace(SHORT, steps=1, image_size=32)
    line = network_line(replace(recipe, data=photographs), 200)
    assert "at 32 x 32 (larger: --set image_size=192)" in line
    with pytest.warns(UserWarning, match=re.escape(line)):
        isd_nb.train(recipe, photographs, tmp_path / "run", device="cpu", threads=1)
    options = ["--recipe", "digits", "--data", photographs, "--set", "image_size=32", "--out", "none", *QUICK, *ALONE]
    said = call(train_command, tmp_path, *options, "--batch-size", "16")  # more than there are images: it ends early
    assert said.returncode and line in said.stdout.splitlines()


def test_large_images_of_a_named_set_are_no_empty_warning(recwarn: pytest.WarningsRecorder) -> None:
    report_read(replace(SHORT, data="torchvision:CIFAR10", image_size=16), Sets(IMAGES, IMAGES, None), show=False)
    assert not recwarn.list


def test_a_function_gets_the_hint_of_larger_views_as_our_networks_do() -> None:
    names = {"tiny": True, "nets:build": True, "timm:resnet18": False, "nets:build,img_size=32": False}
    for name, hint in names.items():
        line = network_line(replace(SHORT, backbone=name, image_size=32), 500)
        assert ("larger: --set image_size=224" in line) == hint


def test_an_image_set_is_made_from_a_dataset() -> None:
    pairs = [(image, i % 2) for i, image in enumerate(IMAGES.images)]
    made = isd_nb.ImageSet.from_dataset(pairs, classes=("even", "odd"))
    assert made.images.equal(IMAGES.images) and made.labels.tolist() == [i % 2 for i in range(24)]
    assert made.classes == ("even", "odd") and isd_nb.ImageSet.from_dataset(pairs, 8).shape == (1, 8, 8)


def test_images_of_sixteen_channels_are_trained_on_and_evaluated(tmp_path: Path) -> None:
    pixels = torch.randint(256, (48, 16, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = isd_nb.ImageSet(pixels, torch.arange(48) % 2)
    train, test = images.subset(range(40)), images.subset(range(40, 48))
    left = isd_nb.train(SHORT, train, tmp_path / "run", test, device="cpu", threads=1)
    encoder = isd_nb.load_encoder(tmp_path / "run")
    assert encoder.config.channels == 16 and 0 <= left.summary["knn20_teacher"] <= 1
    torch.testing.assert_close(isd_nb.embed(encoder, test), left.test["teacher"])
