"""The measures of benchmarks/health.py by hand, and the rules of a method for those of benchmarks/variants.py."""

import importlib
import json
import math
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.testing import assert_close

from isd_nb.engine.contract import check_contract
from isd_nb.data import ImageSet
from isd_nb.recipe import find_recipe
from isd_nb.engine.state import prepare_training
from isd_nb.sources.digits import digits

FOLDER = Path(__file__).parent.parent / "benchmarks"
TOY = replace(
    find_recipe("digits"),
    steps=4,
    batch_size=8,
    queue_size=16,
    width=2,
    projector=(6, 5),
    predictor=(4,),
    batch_norm_splits=2,
    precision="float32",
)
ISD_VARIANTS = ["Prefilled", "Shuffled", "OneHot", "Mixture", "NoNormInHeads", "BothLearn"]


@pytest.fixture
def images() -> ImageSet:
    pixels = torch.randint(256, (40, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return ImageSet(pixels, torch.arange(40) % 4)


@pytest.fixture
def health(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("health")


def test_measures_by_hand(health: ModuleType) -> None:
    same = torch.ones(6, 4) * torch.arange(1, 7)[:, None]
    assert_close(health.rank_me(same), 1.0)
    assert_close(health.rank_me(torch.eye(4)), 4.0)
    values = torch.diag(torch.tensor([3.0, 1.0]))  # shares 3/4 and 1/4
    assert_close(health.rank_me(values), math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert_close(health.spread(same), 0.0)
    assert_close(health.uniformity(same), 0.0)
    opposite = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    assert_close(health.uniformity(opposite), -8.0)  # one pair, squared distance 4
    assert_close(health.alignment(opposite, opposite.flip(0)), 4.0)
    assert_close(health.alignment(opposite, 3 * opposite), 0.0)
    spread = health.spread(torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)))
    assert abs(spread - 1) < 0.01, "directions that are spread evenly have a spread of 1"


@pytest.mark.parametrize("name", [*ISD_VARIANTS, "PlainSimSiam", "OpenSimSiam", "PlainBYOL"])
def test_variants_keep_the_rules_of_a_method(health: ModuleType, images: ImageSet, name: str) -> None:
    check_contract(replace(TOY, method=f"variants:{name}"), images)


def test_parts_that_are_changed(health: ModuleType, images: ImageSet) -> None:
    build = {n: prepare_training(replace(TOY, method=f"variants:{n}"), images, "cpu").method for n in ISD_VARIANTS}
    bare = replace(TOY, method="variants:NoNormInHeads", backbone=f"variants:tiny_without_norm,width={TOY.width}")
    build["NoNorm"] = prepare_training(bare, images, "cpu").method
    isd = prepare_training(TOY, images, "cpu").method
    assert build["Prefilled"].queue.count == 16 and isd.queue.count == 0
    assert_close(build["Prefilled"].queue.anchors.norm(dim=1), torch.ones(16))
    for name in ("NoNorm", "NoNormInHeads"):
        kinds = [type(m).__name__ for m in build[name].modules()]
        assert "ScaleOnly" in kinds and ("SplitBatchNorm" in kinds) == (name == "NoNormInHeads")
        names = {n.replace("backbone.net.", "backbone.") for n, _ in build[name].named_parameters()}
        assert names == {n for n, _ in isd.named_parameters()}
    views = [torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    losses = {n: float(m(*views).loss.detach()) for n, m in {**build, "isd": isd}.items()}
    assert losses["Mixture"] == pytest.approx((losses["OneHot"] + losses["isd"]) / 2, rel=1e-4)


def test_health_says_the_same_twice_and_changes_nothing(health: ModuleType, images: ImageSet) -> None:
    state = prepare_training(TOY, images, "cpu")
    before = {k: v.clone() for k, v in state.method.state_dict().items()}
    measure = health.health(TOY, images, images)
    found = measure(state.method)
    assert found == measure(state.method) and state.method.training
    assert all(torch.equal(before[k], v) for k, v in state.method.state_dict().items())
    assert 0 <= found["label_entropy"] <= math.log(16) + 1e-6 and found["rankme_student"] <= 16


@pytest.mark.parametrize(("data", "seed", "frozen"), [
    ("digits", 0, "3ff8619f0fd2ee17"), ("digits", 3, "8e8b9b11b68092d9"),
    ("cifar10", 0, "bbcfc11dd3b05fa4"), ("cifar10", 3, "b65bec50d32e4b1e"),
])
def test_the_splits_of_saved_results_stay(data: str, seed: int, frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    "Rows to train on, then rows to choose by, of labels in the order of the set."
    monkeypatch.syspath_prepend(str(FOLDER))
    experiment = importlib.import_module("experiment")
    labels = digits()[0].labels if data == "digits" else torch.randint(
        10, (50_000,), generator=torch.Generator().manual_seed(0))
    digit = torch.tensor([1, 256, 65536]).view(1, 3, 1, 1)  # a row's number as its pixels
    images = ImageSet((torch.arange(len(labels)).view(-1, 1, 1, 1) // digit % 256).byte(), labels)
    rows = torch.cat([(part.images.long() * digit).sum((1, 2, 3)) for part in experiment.hold_out(images, data, seed)])
    assert sorted(rows.tolist()) == list(range(len(labels)))
    assert blake2b(rows.numpy().astype("<i8").tobytes(), digest_size=8).hexdigest() == frozen


@pytest.mark.parametrize("name", ["digits", "cifar10_small"])
def test_the_settings_of_saved_trials_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    "Whatever a method gets by its name: the temperatures of a trial are those of the search."
    monkeypatch.syspath_prepend(str(FOLDER))
    experiment, search = (importlib.import_module(script) for script in ("experiment", "search"))
    files = sorted((experiment.RESULTS / "search" / name).glob("*/0[01]-*.json"))
    trials = [json.loads(file.read_text()) for file in files]
    assert {"moco_v2", "co2", "simclr", "isd"} <= {trial["entry"] for trial in trials}
    for trial in trials:
        base = replace(search.base_of(name), data=trial["data"])
        made = experiment.entry_recipe(trial["entry"], base, trial["budget"], trial["settings"], trial["seed"])
        now = experiment.describe(made)
        assert {k: v for k, v in trial["recipe_json"].items() if k in now and now[k] != v} == {}


@pytest.mark.parametrize("name", ["isd", "variants:OneHot", "variants:Mixture"])
def test_controlled_pairs_read_the_queue_in_one_precision(
    health: ModuleType, images: ImageSet, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    "Where ISD's products are in bfloat16, so are those of the variants that differ in the label alone."
    seen = []
    variants = importlib.import_module("variants")
    for place in ("isd_nb.isd", "variants"):
        monkeypatch.setattr(f"{place}.product_precision", lambda *given: torch.bfloat16)
        for loss in ("streaming_soft_label_loss", "streaming_contrastive_loss"):
            if hasattr(variants if place == "variants" else importlib.import_module(place), loss):
                monkeypatch.setattr(f"{place}.{loss}", lambda q, *_, products: (seen.append(products), q.sum())[1])
    method = prepare_training(replace(TOY, method=name), images, "cpu").method
    method(*torch.rand(2, 8, 1, 16, 16))
    assert seen and set(seen) == {torch.bfloat16}
