"""What a user can set wrongly: one sentence, no stack trace, and nothing left on the disk."""
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import SMALL, TINY, call
from isd_nb.methods.building import build_method, find_method
from isd_nb.methods.choosing import change_setting, choose_recipe
from isd_nb.cli.train import isd_train as train_command
from isd_nb.cli.evaluate import isd_eval as eval_command
from isd_nb.data import ImageSet
from isd_nb.errors import InputError, refusal
from isd_nb.method import Method
from isd_nb.recipe import Recipe, check_recipe, find_recipe, recipe_from_json, recipe_to_json, recipes, short_of_warmup
from isd_nb.engine.runs import read_metrics
from isd_nb.engine.state import prepare_training, train_step
from isd_nb.methods.building import methods
from isd_nb.views import ViewRecipe

TOY = replace(find_recipe("digits"), steps=4, batch_size=16, queue_size=32, width=4, projector=(8,), predictor=(6,),
              precision="float32")
VALUES = ("abc", "-1", "0", "1.5", "[]", "[0]", '["a"]', "{}", "null", "true", "NaN", "Infinity", "[1,2,3]", '["a",1]',
          '{"a":1}', "99999999999999999999999")
NAMES = [f.name for f in fields(Recipe)]
NAMES += [f"{place}.{f.name}" for place in ("views", "key_views") for f in fields(ViewRecipe)]


@pytest.fixture(scope="module")
def images() -> ImageSet:
    pixels = torch.randint(0, 256, (40, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels, torch.arange(40) % 2, ("a", "b"))


def sentence(result) -> str:
    "The one line that a refused call prints; it must have no stack trace."
    assert result.returncode == 2, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("isd_")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    return lines[0]


def isd_train(place: Path, *arguments: str | Path):
    return call(train_command, place, *TINY, "--no-figures", "--no-supervised", "--processes", "1", *arguments)


@pytest.mark.parametrize("name", NAMES)
def test_any_value_trains_or_is_refused_in_one_sentence(name: str, images: ImageSet) -> None:
    "Whatever passes the checks can be trained with; what does not names its setting."
    refused = 0
    for value in VALUES:
        try:
            recipe = change_setting(TOY, f"{name}={value}")
            check_recipe(recipe, len(images))
            find_method(recipe.method)
            if recipe.image_size * recipe.width * recipe.queue_size < 1e6:
                state = prepare_training(recipe, images, "cpu")
                train_step(state, torch.arange(recipe.batch_size), images.images[:recipe.batch_size])
        except InputError as error:
            assert str(error) and "\n" not in str(error)
            refused += 1
    assert refused or name in ("data", "name")


@pytest.mark.parametrize(("setting", "words"), [
    ('momentum=["a",1]', "momentum must be a number, or two like [0.9, 1], not [\"a\", 1]"),
    ("image_size=0", "image_size must be 1 or more, not 0"),
    ("image_size=-3", "image_size must be 1 or more, not -3"),
    ("width=4.5", "width must be a whole number, not 4.5"),
    ("queue_size=33.5", "queue_size must be a whole number, not 33.5"),
    ("seed=1.5", "seed must be a whole number, not 1.5"),
    ("seed=99999999999999999999", "seed must be below"),
    ("projector=[0]", "projector must be 1 or more, not [0]"),
    ('projector=["a"]', "projector must be a list of whole numbers"),
    ('widths=["a"]', "widths must be a list of whole numbers"),
    ("key_views=3", "key_views must be settings of views"),
    ("steps=2.5", "steps must be a whole number, not 2.5"),
    ("batch_size=0", "batch_size must be 2 or more, not 0"),
    ("accumulate=0", "accumulate must be 1 or more, not 0"),
    ("warmup_steps=-1", "warmup_steps must be 0 or more, not -1"),
    ("evaluations=0", "evaluations must be 1 or more, not 0"),
    ("blocks=0", "blocks must be 1 or more, not 0"),
    ("student_temperature=hot", 'student_temperature must be a number, not "hot"'),
    ("teacher_temperature=[1]", "teacher_temperature must be a number"),
    ("stored_size=abc", "stored_size must be a whole number"),
    ("batch_norm_splits=0", "batch_norm_splits must be 1 or more"),
    ("batch_norm_splits=16", "two images or more each"),
    ("views.blur=abc", "views.blur must be a number"),
    ("views.crop_scale=[1,0.5]", "views.crop_scale is"),
    ("options=3", "options must be names and values"),
    ("method=torch.nn:Linear", "subclass of isd_nb.method.Method"),
])
def test_a_wrong_setting_leaves_nothing_behind(setting: str, words: str, small: Path, tmp_path: Path) -> None:
    assert words in sentence(isd_train(tmp_path, *SMALL, "--out", "run", "--set", setting))
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_named_as_python_and_the_command_call_it() -> None:
    other = "another batch_size (--batch-size), or batch_norm_splits=1 (--set batch_norm_splits=1)"
    assert "choose a smaller batch_size (--batch-size)" in refusal(check_recipe, TOY, 10)
    assert other in refusal(check_recipe, replace(TOY, batch_norm_splits=3), 16)
    assert "such as warmup_steps=4 (--set warmup_steps=4)" in short_of_warmup(replace(TOY, warmup_steps=50), 40)


def test_the_corrected_call_finds_its_place_free(small: Path, tmp_path: Path) -> None:
    sentence(isd_train(tmp_path, *SMALL, "--out", "run", "--set", "width=4.5"))
    result = isd_train(tmp_path, *SMALL, "--out", "run", "--set", "width=4", "--set", "momentum=0.99")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["momentum"] == [0.99, 0.99]
    assert {round(r["momentum"], 6) for r in read_metrics(tmp_path / "run") if "momentum" in r} == {0.99}


def test_values_of_a_recipe_in_python_and_json() -> None:
    assert replace(TOY, momentum=0.99).momentum == (0.99, 0.99)
    assert Recipe("x", projector=[8, 4], views={"blur": 0.25}).views == ViewRecipe(blur=0.25)
    assert change_setting(TOY, "key_views.flip=1").key_views == replace(TOY.views, flip=1)
    for recipe in recipes.values():
        assert recipe_from_json(recipe_to_json(recipe)) == recipe
    wrong = [([1], "names and values"), ({}, "has a name"), ({"name": "x", "sed": 1}, "sed"),
             ({"name": "x", "seed": "1"}, "seed must be"), ({"name": "x", "views": [1]}, "settings of views")]
    for values, words in wrong:
        with pytest.raises(InputError, match=words):
            recipe_from_json(values)


@pytest.mark.parametrize("method", sorted(methods))
def test_options_of_a_wrong_kind(method: str, images: ImageSet) -> None:
    recipe = choose_recipe("digits", None, method=method, batch_size=16, queue_size=32)
    for name, usual in find_method(method).options.items():
        for wrong in ("abc", -1) if isinstance(usual, int | float) else (3,) if isinstance(usual, str) else ():
            with pytest.raises(InputError, match=f"the option {name} of {method} must be"):
                build_method(replace(recipe, options={name: wrong}), images)


@pytest.mark.parametrize("method", sorted(methods))
def test_a_batch_may_exceed_the_queue_of_a_method_without_one(method: str, images: ImageSet) -> None:
    recipe = replace(choose_recipe("digits", None, method=method, batch_size=64), queue_size=32)
    if find_method(method).has_queue:
        with pytest.raises(InputError, match="a queue of 32 anchors is smaller than a batch of 64"):
            build_method(recipe, images)
    else:
        assert build_method(recipe, images).student is not None


@pytest.mark.parametrize("method", ["pirl", "invp"])
def test_a_bank_cannot_keep_more_than_all_of_a_row(method: str, images: ImageSet) -> None:
    recipe = choose_recipe("digits", None, method=method, batch_size=16)
    with pytest.raises(InputError, match=r"bank_momentum of \w+ must lie in \[0, 1\], not 3"):
        build_method(replace(recipe, options={"bank_momentum": 3}), images)


@pytest.mark.parametrize("name", ["torch.nn:Linear", "isd_nb.data:ImageSet", "math:pi", "os.path:join", ":x", "x:",
                                  "..x:y", "a b:c"])
def test_what_is_no_method_is_refused(name: str, tmp_path: Path) -> None:
    assert "method" in sentence(isd_train(tmp_path, "--method", name, "--out", "run"))
    assert not (tmp_path / "run").exists()
    assert all(issubclass(find_method(known), Method) for known in methods)


# One for each kind of data, and one of the authors; all are planned in `test_training_scale`.
PLANNED = ("digits", "cifar10_small", "cifar100", "stl10", "tiny_imagenet", "imagenet100", "imagenet",
           "imagenet_authors")


@pytest.mark.parametrize("name", PLANNED)
def test_a_dry_run_needs_no_images(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets.utils as utils

    def download(*_, **__) -> None:
        raise AssertionError("a dry run downloads nothing")
    for function in ("download_url", "download_and_extract_archive", "urlretrieve", "_urlretrieve"):
        monkeypatch.setattr(utils, function, download, raising=False)
    if name != "cifar10_small":  # what is measured takes half a minute for a ResNet-50
        monkeypatch.setattr("isd_nb.engine.estimate.speed_here", lambda *_: 1000.0)
        monkeypatch.setattr("isd_nb.engine.estimate.activation_line", lambda *_: (1e6, 1e6, 1e9))
    result = call(train_command, tmp_path, "--recipe", name, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "steps" in result.stdout and "memory" in result.stdout and "time" in result.stdout
    sizes = dict(digits=5188, cifar10=50_000, cifar100=50_000, stl10=105_000, tiny_imagenet=100_000,
                 imagenet100=126_689)
    kind = name.removesuffix("_authors").removesuffix("_small")
    count = f"{sizes.get(kind, 1_281_167):,} images"
    assert f"method {recipes[name].method}, {count}" in result.stdout
    assert (kind == "digits") != (f"planned with the {count} of" in result.stdout)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_set_whose_size_is_unknown(tmp_path: Path, small: Path) -> None:
    def dry(*arguments: str):
        return call(train_command, tmp_path, "--dry-run", "--batch-size", "16", *arguments)
    assert "elsewhere is not a folder" in sentence(dry("--recipe", "imagenet", "--data", "folder:elsewhere"))
    assert "a dry run downloads nothing" in sentence(dry("--data", "torchvision:KMNIST"))
    assert "did you mean 'CIFAR10'" in sentence(dry("--data", "torchvision:CIFAR11"))
    assert not (tmp_path / "data").exists()
    assert "80 images" in dry(*SMALL).stdout  # those that are there are counted


@pytest.mark.parametrize("place", ["file.png/x", "file.png/x/y", "/proc/nope/x", "/dev/null/x"])
def test_a_place_where_nothing_can_be_written(place: str, small: Path, tmp_path: Path) -> None:
    (tmp_path / "file.png").write_text("a file")
    assert "choose another out (--out)" in sentence(isd_train(tmp_path, *SMALL, "--out", place))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(small: Path, tmp_path: Path) -> None:
    (tmp_path / "fixed").mkdir(mode=0o500)
    assert "choose another out (--out)" in sentence(isd_train(tmp_path, *SMALL, "--out", "fixed/x"))
    assert "choose another out (--out)" in sentence(isd_train(tmp_path, *SMALL, "--out", "fixed"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A folder with the directory `run` of a finished run and the images `small` that it was trained on."
    place = tmp_path_factory.mktemp("finished")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 20, 20), np.uint8)
    for i, image in enumerate(pixels):
        folder = place / "small" / ("train" if i < 40 else "test") / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    result = isd_train(place, *SMALL, "--out", "run")
    assert result.returncode == 0, result.stderr
    return place


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    "A copy that may be damaged."
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


def test_a_damaged_config_is_named(run: Path) -> None:
    good = (run / "config.json").read_bytes()
    for text in (b"", good[:100], b"[1, 2]", b"3", b"{}", b"\xff\xfe\x00", b'{"recipe": 3}', b'{"recipe": {}}',
                 b'{"recipe": {"name": 5}}', b'{"recipe": {"name": "x", "sed": 1}}'):
        (run / "config.json").write_bytes(text)
        resumed = isd_train(run.parent, *SMALL, "--out", "run", "--resume")
        for result in (resumed, call(eval_command, run.parent, "run")):
            assert "config.json is damaged" in sentence(result), text


def test_damaged_metrics_are_named(run: Path) -> None:
    for text in (b"1,2\n3,4\n", b"step,loss\n1,2,3\n", b"step,loss\n\xff,1\n", b"step,loss\n1\x002,3\n",
                 b"step\nabc\n"):
        (run / "metrics.csv").write_bytes(text)
        with pytest.raises(InputError, match=r"metrics.csv is damaged"):
            read_metrics(run)
    assert "metrics.csv is damaged" in sentence(isd_train(run.parent, *SMALL, "--out", "run", "--resume"))


def test_damaged_encoders_are_named(run: Path) -> None:
    weights = run / "encoder.safetensors"
    good = weights.read_bytes()
    renamed = good.replace(b'\\"image_size\\"', b'\\"image_siye\\"')
    for text in (b"", good[:50], good[:1000], good[:-100], b"\xff" * 100, renamed):
        weights.write_bytes(text)
        assert "encoder.safetensors" in sentence(call(eval_command, run.parent, "run"))
    weights.unlink()
    assert "holds no encoder.safetensors; finish it with" in sentence(call(eval_command, run.parent, "run"))


def test_damaged_answers_are_named(run: Path) -> None:
    (run / "eval").mkdir()
    for text in ("", "[1]", "{}", '{"rows": 3}', '{"rows": [3]}'):
        (run / "eval" / "knn.json").write_text(text)
        assert "delete it" in sentence(call(eval_command, run.parent, "run")), text
    shutil.rmtree(run / "eval")
    (run / "eval").write_text("in the way")
    assert "eval" in sentence(call(eval_command, run.parent, "run"))


@pytest.mark.parametrize("place", ["small", "nowhere"])
def test_what_is_no_run_is_not_evaluated(place: str, finished: Path) -> None:
    assert "it has no config.json" in sentence(call(eval_command, finished, place))


@pytest.mark.parametrize(("arguments", "words"), [
    (("--epochs", "-1"), "epochs must be 1 or more"),
    (("--epochs", "0", "--min-steps", "0"), "epochs must be 1 or more"),
    (("--min-steps", "-1"), "min_steps must be 0 or more"),
    (("--backbone-rate", "nan"), "backbone_rate must be 0 or more"),
    (("--seeds", "0"), "seeds must be 1 or more"),
    (("--seeds", "9" * 30), "seeds must be 1,000 or less"),
    (("--fractions", "nan"), "fractions in (0, 1]"),
])
def test_budgets_that_are_none(arguments: tuple[str, ...], words: str, finished: Path) -> None:
    assert words in sentence(call(eval_command, finished, "run", "--protocol", "linear", *arguments))
    assert not (finished / "run" / "eval").exists()


@pytest.mark.parametrize(("options", "words"), [({"steps": 100}, "4\\^100 paths"), ({"neighbours": 40}, "1 to 39"),
                                                ({"steps": 0}, "1 or more")])
def test_invp_refuses_walks_that_cannot_be(options: dict, words: str, images: ImageSet) -> None:
    with pytest.raises(InputError, match=words):
        build_method(replace(TOY, method="invp", options=options), images)


@pytest.mark.parametrize(("damage", "words"), [
    (lambda saved: saved["rows"][0].pop("low"), "a row has no number for low"),
    (lambda saved: saved["question"]["images"][0].pop("fingerprint"), "does not state what its rows are about"),
])
def test_saved_rows_that_lack_something_are_named(damage: Callable, words: str, run: Path) -> None:
    call(eval_command, run.parent, "run")
    path = run / "eval" / "knn.json"
    damage(saved := json.loads(path.read_text()))
    path.write_text(content := json.dumps(saved))
    assert words in sentence(call(eval_command, run.parent, "run"))
    assert path.read_text() == content
