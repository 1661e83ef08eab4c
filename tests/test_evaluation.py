"""Protocols against independent references, and the studies of chapters 20 at toy size."""
import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from isd_nb import embedding
from isd_nb.kernels import linear_classifier
from isd_nb.studies import few_labels, soft_and_binary, unbalanced
from isd_nb.studies.evidence import Study, ledger_of, pair_up, paired, read_result
from isd_nb.studies.few_labels import labelled_rows
from isd_nb.data import ImageSet, held_out, stratified_fraction
from isd_nb.sources.digits import digits
from isd_nb.sources.door import load_sets
from isd_nb.encoders import Encoder, load_encoder, save_encoder
from isd_nb.errors import InputError
from isd_nb.evaluation import (
    LinearClassifier, Score, accuracy_interval, embed, fit_linear, knn_accuracy, knn_predict, linear_accuracy)
from isd_nb.protocols import answers
from isd_nb.protocols.answers import ResultCache
from isd_nb.protocols.fine_tuning import Classifier, FINETUNE, LINEAR, augmented_linear, finetune, fit_classifier
from isd_nb.methods.building import backbone_config, build_method
from isd_nb.protocols.scorer import score_encoders
from isd_nb.recipe import find_recipe, recipe_to_json
from isd_nb.views import GENTLE

RECIPE = replace(find_recipe("digits"), width=4, batch_size=16, queue_size=32, projector=(8,), predictor=(8,))


@pytest.fixture(scope="module")
def sets() -> tuple[ImageSet, ImageSet]:
    return digits(copies=1)


@pytest.fixture(scope="module")
def net(sets) -> Encoder:
    return build_method(RECIPE, sets[0]).student.eval()


def pixel_halves() -> Iterator[tuple[Tensor, Tensor]]:
    pixels, names = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(1))
    return ((pixels[i].float(), names[i].long()) for i in order.split(899))


def test_a_score_is_compared_and_printed_as_its_top1() -> None:
    score, worse = Score(0.75, 1.0, torch.ones(4)), Score(0.5, 1.0, torch.ones(4))
    assert float(score) == 0.75 and f"{score:.3f} {score:.0%}" == "0.750 75%"
    assert f"{score}" == str(score) == repr(score) == "Score(top1=0.75, top5=1.0)"
    assert 0.5 < score <= 0.75 <= score < 1 and worse < score and worse <= score and score > worse and score >= worse
    assert max(worse, score) is score and score == Score(0.75, 1.0, torch.zeros(4)) != worse
    assert score == 0.75 != worse and hash(score) == hash(0.75)
    with pytest.raises(TypeError):
        print(score < "1")


def test_a_linear_layer_draws_nothing_and_computes_in_float32_wherever_it_is_called() -> None:
    (features, labels), (test, truth) = pixel_halves()
    before, settings = torch.get_rng_state(), dict(epochs=2, min_steps=0)
    plain = linear_accuracy(features, labels, test, truth, **settings)
    assert torch.equal(torch.get_rng_state(), before), "an evaluation changes the training that follows"
    weight = fit_linear(features, labels, **settings).linear.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fit_linear(features, labels, **settings).linear.weight, weight)
        assert linear_accuracy(features, labels, test, truth, **settings) == plain
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(fit_linear(features, labels, **settings).linear.weight, weight)
        assert linear_accuracy(features, labels, test, truth, **settings) == plain
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("tied", [False, True])
def test_neighbours_are_those_of_scikit_learn(k: int, tied: bool) -> None:
    "On random data; and where many distances are equal, wherever the vote does not depend on which of these are taken."
    rng = np.random.default_rng(k)
    if tied:  # directions from a small grid: many images lie at exactly the same angle
        train, test = (rng.integers(-1, 2, (n, 3)) + np.array([0.5, 0.25, 0.0]) for n in (501, 83))
    else:
        train, test = (rng.standard_normal((n, 7)) for n in (501, 83))
    labels = (train > 0)[:, :2] @ np.array([1, 2])  # mostly a matter of direction
    labels = np.where(rng.random(len(train)) < 0.03, rng.integers(0, 4, len(train)), labels)
    train, test = train.astype(np.float32), test.astype(np.float32)
    ours = knn_predict(*map(torch.from_numpy, (train, labels, test)), k).numpy()
    theirs = KNeighborsClassifier(k, metric="cosine").fit(train, labels)
    unit_test, unit_train = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (test, train))
    distances = 1 - unit_test @ unit_train.T
    compared = 0
    for row, (mine, prediction) in enumerate(zip(ours, theirs.predict(test))):
        edge = np.sort(distances[row])[k - 1]
        sure, maybe = labels[distances[row] < edge - 1e-6], labels[np.abs(distances[row] - edge) <= 1e-6]
        free = k - len(sure)  # places in the vote that any of `maybe` may take
        most = [np.sum(sure == c) + min(free, np.sum(maybe == c)) for c in range(4)]
        least = [np.sum(sure == c) + max(0, free - np.sum(maybe != c)) for c in range(4)]
        assert most[mine] >= max(least), "no choice among the tied neighbours gives this label"
        clear = [c for c in range(4) if all(least[c] > most[o] for o in range(4) if o != c)]
        if clear:  # the same label whatever is chosen
            assert mine == prediction == clear[0]
            compared += 1
    assert compared >= (20 if tied else 50)


def test_the_linear_layer_is_logistic_regression() -> None:
    "Within half a point, on digits, both halves."
    one, two = pixel_halves()
    ours, theirs = [], []
    for (x, y), (test_x, test_y) in ((one, two), (two, one)):
        layer = LinearClassifier(x, 10)
        solver = LogisticRegression(C=1 / (1e-4 * len(x)), max_iter=2000).fit(layer.standardise(x), y)
        theirs.append(solver.score(layer.standardise(test_x), test_y))
        ours.append(linear_accuracy(x, y, test_x, test_y, min_steps=2001))  # `usual`, 2,000, is cut short in tests
    assert abs(np.mean(ours) - np.mean(theirs)) <= 0.005, (ours, theirs)


def test_the_linear_layer_divides_as_the_authors_do() -> None:
    "A nearly constant feature is divided by sqrt(var + 1e-5), not by its own tiny deviation."
    x = torch.tensor([[1.0, 1e-7], [1.0, 0.0], [1.0, -1e-7]])
    torch.testing.assert_close(LinearClassifier(x, 2).std, torch.full((2,), 1e-5).sqrt(), rtol=1e-3, atol=0)


def test_one_epoch_of_the_linear_layer_has_the_full_learning_rate() -> None:
    "Milestones at 15 and 30 fortieths of one epoch do not come before its first step."
    x, y = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    layer = fit_linear(x, y, epochs=1, min_steps=1)  # one step, from weights of zero
    gradient = (1 / 3 - nn.functional.one_hot(y, 3)).T @ layer.standardise(x) / 30  # (3, 4)
    torch.testing.assert_close(layer.linear.weight, -0.01 * gradient, rtol=1e-4, atol=1e-7)


class PeakBytes(TorchDispatchMode):
    "The most memory that the tensors of all results have held at once."

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # as PyTorch calls it
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self.live:
                self.live[key] = tensor.untyped_storage().nbytes()
                self.peak = max(self.peak, sum(self.live.values()))
                weakref.finalize(tensor.untyped_storage(), self.live.pop, key, None)
        return made


def test_the_linear_layer_makes_one_copy_of_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_classifier, "block", 100)  # rows that are standardised at a time
    features = torch.randn(2000, 200)
    with PeakBytes() as memory:
        fit_linear(features, torch.arange(2000) % 5, epochs=1, min_steps=1)
    assert memory.peak < 2.3 * features.nbytes  # themselves and the copy


def test_encoders_are_scored_from_one_pass_over_the_images(sets, monkeypatch: pytest.MonkeyPatch) -> None:
    "Two encoders do not decode every image twice."
    passes: list[int] = []
    in_batches = embedding.in_batches
    noted = lambda images, size: (passes.append(len(images)), in_batches(images, size))[1]  # noqa: E731
    monkeypatch.setattr(embedding, "in_batches", noted)
    encoders = {name: nn.Flatten() for name in ("student", "teacher")}
    scores = score_encoders(encoders, *(images.subset(range(40)) for images in sets), linear=False)
    assert scores.keys() == encoders.keys() and passes[-2:] == [40, 40] and sum(passes) <= 82  # one for the width


def test_arrays_and_lists_are_features_and_negative_labels_are_refused() -> None:
    pixels, labels = load_digits(return_X_y=True)
    halves = pixels[:900], labels[:900], pixels[900:], labels[900:]
    kinds = halves, tuple(map(torch.from_numpy, halves)), tuple(part.tolist() for part in halves)
    assert len({knn_accuracy(*kind) for kind in kinds}) == 1
    assert ImageSet(pixels[:, None, :, None].astype(np.uint8), labels).labels.dtype == torch.int64
    for refused in (lambda: ImageSet(np.zeros((2, 1, 4, 4), np.uint8), [0, -1]),
                    lambda: knn_accuracy(*halves[:3], labels[900:] - 1),
                    lambda: linear_accuracy(pixels, labels - 1, *halves[2:])):
        with pytest.raises(InputError, match="labels must be 0 or more"):
            refused()


def test_few_labels_are_stratified_nested_and_reproducible() -> None:
    labels = torch.from_numpy(np.random.default_rng(0).choice(5, 1000, p=[0.5, 0.2, 0.15, 0.1, 0.05]))
    sizes = labels.bincount()
    for seed in range(3):
        inside = set()
        for fraction in (0.001, 0.01, 0.1, 0.5, 1.0):
            rows = stratified_fraction(labels, fraction, seed)
            expected = [max(1, round(fraction * int(n))) for n in sizes]
            assert labels[rows].bincount(minlength=5).tolist() == expected
            assert inside <= set(rows.tolist()) and torch.equal(rows, stratified_fraction(labels, fraction, seed))
            inside = set(rows.tolist())
    assert not torch.equal(stratified_fraction(labels, 0.1, 0), stratified_fraction(labels, 0.1, 1))
    assert set(labelled_rows(labels, 3).tolist()) < set(labelled_rows(labels, 9).tolist())


def test_fine_tuning_learns_and_freezes_nothing(sets, net, tmp_path: Path) -> None:
    "Also from a file, where the encoder is frozen and refuses training mode."
    images, held = sets
    save_encoder(tmp_path / "encoder.safetensors", {"student": net}, backbone_config(RECIPE, 1), 16)
    frozen = load_encoder(tmp_path, "student")
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    tuning = replace(FINETUNE, epochs=1, min_steps=60, batch_size=64, views=GENTLE)
    classifier = fit_classifier(frozen, images, tuning, folder=tmp_path / "eval" / "new")  # neither is there yet
    for name, value in frozen.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the encoder that is evaluated has changed"
        if name not in ("mean", "std"):
            assert not torch.equal(classifier.encoder.state_dict()[name], value), f"{name} did not learn"
    right = (embed(classifier, images).argmax(1) == images.labels).double().mean()
    assert right > 0.3, "chance is 0.1"
    tuned = finetune(frozen, images, held, 0.5, tuning=tuning)
    again = finetune(frozen, images, held, 0.5, tuning=tuning)
    assert (tuned.top1, tuned.top5) == (again.top1, again.top5) and tuned.top5 > tuned.top1 > 0.15


def test_the_augmented_linear_layer_leaves_the_backbone_alone(sets, net) -> None:
    images, held = sets
    tuning = replace(LINEAR, epochs=1, min_steps=20, views=GENTLE)
    classifier = fit_classifier(net, images, tuning)
    for name, value in classifier.encoder.state_dict().items():
        assert torch.equal(value, {**net.state_dict()}[name]), name
    assert 0.15 < augmented_linear(net, images, held, tuning).top1 <= 1, "chance is 0.1"
    assert not any(p.requires_grad for p in Classifier(net, embed(net, images), 10, learns=False).encoder.parameters())


def test_a_classifier_that_forgets_to_train_its_backbone_is_noticed(sets, net, monkeypatch) -> None:
    "The test above can fail: with frozen parameters, the backbone does not move."
    images, _ = sets
    monkeypatch.setattr(Encoder, "requires_grad_", lambda self, learns=True: nn.Module.requires_grad_(self, False))
    classifier = fit_classifier(net, images, replace(FINETUNE, epochs=1, min_steps=3, batch_size=64))
    moved = [n for n, p in classifier.encoder.named_parameters() if not torch.equal(p, dict(net.named_parameters())[n])]
    assert not moved


def test_paired_differences() -> None:
    result = paired([0.9, 0.8, 0.7], [0.8, 0.7, 0.6])
    assert result.mean == pytest.approx(0.1) and (result.ahead, result.seeds) == (3, 3)
    assert "is ahead of" in result.say("A", "B") and "within the noise" in paired([1, 2], [2, 1]).say("A", "B")
    rows = [dict(seed=s, kind=k, v=s + k) for s in (0, 1, 2) for k in (0, 1)]
    assert pair_up(rows[:-1], "v", dict(kind=1), dict(kind=0)).seeds == 2  # the third seed has one side only


@pytest.mark.parametrize("claim", [soft_and_binary, few_labels, unbalanced], ids=lambda c: c.__name__.split(".")[-1])
def test_studies_go_on_where_they_stopped(claim, sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A file that has lost rows is completed, to the same numbers; a second seed is added to the first."
    few = tuple(images.subset(range(count)) for images, count in zip(sets, (400, 100)))
    monkeypatch.setattr(Study, "images", lambda study: few)
    smaller = {few_labels: dict(budgets=(1,), min_steps=3), soft_and_binary: dict(temperatures=(0.02, 0.1))}
    more = smaller.get(claim, {})
    recipe = replace(RECIPE, evaluations=1)
    study = Study("toy", recipe, 32, (0,), tmp_path / "out", tmp_path / "runs", "cpu")
    rows = claim.measure(study, **more).rows
    path = tmp_path / "out" / "toy.json"
    saved = json.loads(path.read_text())
    assert saved["rows"] == rows and {"question", "command", "machine", "version"} <= set(saved)
    path.write_text(json.dumps({**saved, "rows": rows[:-1]}))
    assert claim.measure(study, **more).rows == rows
    wider = claim.measure(replace(study, seeds=(0, 1)), **more).rows
    assert wider[:len(rows)] == rows and {r["seed"] for r in wider} == {0, 1}


def test_rows_of_a_claim_belong_to_their_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study("toy", RECIPE, 32, (0,), tmp_path, tmp_path / "runs", "cpu")
    images, test = held_out(load_sets("digits", 8).bank.subset(range(80)))
    others = images.subset(range(40))
    assert ledger_of(study, images, test, tail=1).row({"seed": 0}, lambda: {"value": 1})["value"] == 1
    assert ledger_of(study, images, test, tail=1).row({"seed": 0}, lambda: {"value": 2})["value"] == 1
    with pytest.warns(UserWarning, match=r"toy.json holds rows of other images .*: computed again"):
        assert ledger_of(study, others, test, tail=1).row({"seed": 0}, lambda: {"value": 3})["value"] == 3
    saved = json.loads((tmp_path / "toy.json").read_text())
    del saved["question"]["images"], saved["question"]["protocol_version"]  # as an earlier version saved it
    (tmp_path / "toy.json").write_text(json.dumps(saved))
    read_result("toy", folder=tmp_path)
    assert "by protocol 1 (today 2), which did not note the images" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as later:
        later.setattr("isd_nb.studies.evidence.protocol_version", 3)
        noted = {**saved, "question": {**saved["question"], "images": [], "protocol_version": 2}}
        (tmp_path / "later.json").write_text(json.dumps(noted))
        read_result("later", folder=tmp_path)
    assert "by protocol 2 (today 3)\n" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="rows of an earlier version, which did not note their images"):
        assert ledger_of(study, others, test, tail=1).row({"seed": 0}, lambda: {"value": 4})["value"] == 4
    again = json.loads((tmp_path / "toy.json").read_text())
    assert (again["before"]["protocol_version"], again["before"]["rows"]) == (1, saved["rows"])
    read_result("toy", folder=tmp_path)
    assert "by protocol" not in capsys.readouterr().out


@pytest.mark.parametrize("inside", [True, False])
def test_a_result_of_an_earlier_recipe_is_marked(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: bool) -> None:
    "A claim keeps the recipe in its question, `isd_compare` beside its runs; the budget is stated in images."
    saved = {"recipe": recipe_to_json(replace(find_recipe("digits"), projector=(128, 64), steps=7))}
    (tmp_path / "x.json").write_text(json.dumps({"question": saved} if inside else saved))
    read_result("x", folder=tmp_path)
    assert "differs from today's recipe: projector [128, 64] (today [256])\n" in capsys.readouterr().out
    (tmp_path / "x.json").write_text(json.dumps({"recipe": "digits"}))  # as a table of `isd_train` has it
    read_result("x", folder=tmp_path)
    assert "differs" not in capsys.readouterr().out


def test_an_interval_of_an_accuracy_has_a_width_at_its_ends() -> None:
    "By Wilson: with 20 of 20 right the lower end is 20 / (20 + 1.96 squared)."
    right = torch.ones(20, dtype=torch.bool)
    assert accuracy_interval(right) == pytest.approx((20 / (20 + 1.95996**2), 1), abs=1e-5)
    assert accuracy_interval(~right) == pytest.approx((0, 1 - 20 / (20 + 1.95996**2)), abs=1e-5)
    low, high = accuracy_interval(torch.arange(40) < 20)
    assert low == pytest.approx(1 - high) and 0.35 < low < 0.36


@pytest.mark.parametrize("column", ["top1", "20-nn"])
def test_a_saved_row_has_the_interval_of_today(tmp_path: Path, column: str) -> None:
    "Rows of before had one of the bootstrap: with all right it had no width. The accuracies stay as they are."
    saved = dict(question={"a": 1}, test_images=20, rows=[{"encoder": "teacher", column: 1.0, "low": 1.0, "high": 1.0}])
    (tmp_path / "x.json").write_text(json.dumps(saved))
    row = ResultCache(tmp_path / "x.json", {"a": 1}).row({"encoder": "teacher"}, dict)
    assert (row["low"], row["high"]) == accuracy_interval([True] * 20) and row[column] == 1


def test_the_interval_of_a_transfer_is_that_of_its_top_1(monkeypatch: pytest.MonkeyPatch) -> None:
    "The table names it so."
    monkeypatch.setattr(answers, "linear", lambda *given: dict(top1=0.5, top5=1.0, low=0.4, high=0.6))
    monkeypatch.setattr(answers, "neighbours", lambda *given: {"20-nn": 0.8, "low": 0.7, "high": 0.9})
    ((_, compute),) = answers.answers(None, answers.EvalConfig("transfer", "digits"))
    assert (row := compute(Path()))["low"] == 0.4 and row["20-nn"] == 0.8
