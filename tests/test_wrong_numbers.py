"""Pixels that are normalised already, classifiers that diverged: numbers with no result, and no wrong one either."""
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as tv
from torch import Tensor, nn

from isd_nb import STRONG, ImageSet, Views, embed
from isd_nb.encoders import BackboneConfig, Encoder, FrozenEncoder, build_backbone
from isd_nb.errors import refusal
from isd_nb.evaluation import fit_linear, knn_accuracy, linear_accuracy, score
from isd_nb.explore.gallery import gallery_of
from isd_nb.explore.neighbours import look_up, plot_neighbours, plot_soft_label
from isd_nb.explore.page_data import describe
from isd_nb.protocols.fine_tuning import FINETUNE, finetune
from isd_nb.views import ViewRecipe

G = torch.Generator().manual_seed(0)
FLOATS = torch.rand(6, 3, 16, 16, generator=G)
BYTES = (255 * FLOATS).to(torch.uint8)
VECTORS = torch.randn(6, 4, generator=G)
IMAGENET = tv.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def both(images: Tensor) -> list[str]:
    "How views and encoders refuse these images."
    encoder = FrozenEncoder(build_backbone(BackboneConfig("tiny")), [0.5] * 3, [0.5] * 3)
    return [refusal(Views(STRONG, 8), images, torch.Generator()), refusal(encoder, images)]


@pytest.mark.parametrize("normalised", [
    IMAGENET(FLOATS), 2 * FLOATS - 1, IMAGENET(FLOATS).contiguous(memory_format=torch.channels_last)])
def test_images_that_are_normalised_already(normalised: Tensor) -> None:
    low, high = float(normalised.min()), float(normalised.max())
    for found in both(normalised):
        assert f"values from {low:.3g} to {high:.3g}: they are normalised already" in found
        assert "without Normalize" in found


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_no_numbers(value: float) -> None:
    images = FLOATS.clone()
    images[3, 1, 5, 5] = value
    assert all("NaN or infinite values" in found for found in both(images))


def test_pixels_a_little_outside_of_the_range_and_bytes_as_floats() -> None:
    larger = torch.nn.functional.interpolate(FLOATS.round(), (32, 32), mode="bicubic", antialias=True)
    assert larger.min() < 0 and Views(STRONG, 8)(larger, torch.Generator()).shape == (6, 3, 8, 8)
    assert all("divide them by 255" in found for found in both(255 * FLOATS))


@pytest.mark.parametrize("values", [torch.tensor, np.array])
def test_logits_that_hold_nan_have_no_accuracy(values: Callable) -> None:
    found = refusal(score, values([[float("nan"), 1.0, 2.0]]), [0])
    assert found == "logits hold NaN: the classifier has diverged; choose a smaller learning rate"
    assert score(values([[-float("inf"), 1.0, 2.0]]), [2]).top1 == 1.0  # a class that is left out
    assert score(torch.tensor([[3, 1]]), [0]).top1 == 1.0


def test_a_linear_layer_that_diverged_has_no_accuracy() -> None:
    features, labels = torch.randn(40, 5, generator=G), torch.arange(40) % 4
    found = refusal(linear_accuracy, features, labels, features, labels, learning_rate=1e30, min_steps=20, epochs=1)
    assert "choose a smaller learning rate" in found


def test_a_whole_network_that_diverged_has_no_accuracy() -> None:
    encoder = Encoder(build_backbone(BackboneConfig("tiny")), [0.5] * 3, [0.5] * 3)
    images = ImageSet(BYTES, torch.arange(6) % 2)
    wild = replace(FINETUNE, head_rate=1e38, epochs=1, min_steps=6, batch_size=2)
    assert "choose a smaller learning rate" in refusal(finetune, encoder, images, images, 1.0, tuning=wild)


@pytest.mark.parametrize(("name", "value"), [
    ("learning_rate", float("nan")), ("learning_rate", -0.01), ("learning_rate", 0), ("learning_rate", "0.1"),
    ("weight_decay", -1.0), ("weight_decay", None), ("batch_size", 0), ("batch_size", -1), ("batch_size", 2.0),
    ("batch_size", True), ("epochs", -1), ("epochs", 1.5), ("min_steps", "x")])
def test_settings_of_a_linear_layer(name: str, value: object) -> None:
    found = refusal(fit_linear, torch.randn(8, 5, generator=G), torch.arange(8) % 2, **{name: value})
    assert found.startswith(f"{name} must be a")


def test_settings_of_a_linear_layer_in_numpy() -> None:
    counts = dict(batch_size=np.int64(4), epochs=np.int32(1), min_steps=0)
    features, labels = torch.randn(8, 5, generator=G), torch.arange(8) % 2
    fit_linear(features, labels, learning_rate=np.float32(0.01), weight_decay=0, **counts)


@pytest.mark.parametrize("place", ["cuda", torch.device("cuda"), "cuda:1"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_here(place: str | torch.device) -> None:
    assert "PyTorch finds" in refusal(embed, nn.Flatten(), BYTES, device=place)


@pytest.mark.parametrize("place", ["gpu", "cuda:x", 2.5, []])
def test_a_device_that_is_none(place: object) -> None:
    assert "unknown device" in refusal(embed, nn.Flatten(), BYTES, device=place)


def test_devices_and_precisions_of_an_embedding() -> None:
    plain = embed(nn.Flatten(), BYTES)
    for place in (None, "", "cpu", "cpu:0", torch.device("cpu"), *(() if torch.cuda.is_available() else ["auto"])):
        assert torch.equal(embed(nn.Flatten(), BYTES, device=place), plain)
    for precision in (torch.bfloat16, None, 16):
        found = refusal(embed, nn.Flatten(), BYTES, precision=precision)
        assert f"unknown precision {precision}: known: bfloat16, float32" in found


def test_an_encoder_whose_width_depends_on_the_batch() -> None:
    def uneven(images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 2 + len(images))
    found = refusal(embed, uneven, BYTES, batch_size=4)
    assert "the encoder returns features of the shape (4,) for one image, but (6,) for one of an earlier" in found


def shown(channels: int = 3) -> ImageSet:
    "Six images of so many channels."
    return ImageSet(BYTES.repeat(1, 2, 1, 1)[:, :channels], torch.arange(6) % 2, ("a", "b"))


@pytest.mark.parametrize("rows", [[1, 5], np.array([1, 5]), torch.tensor([1, 5]), (np.int64(1), 5), range(1, 6, 4)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_rows_and_channels_of_a_plot(rows: Any, channels: int) -> None:
    images, other = shown(channels), shown(channels)
    for bank in (images, other):
        figure = plot_neighbours(images, VECTORS, bank, VECTORS.numpy(), rows, k=2)
        assert [ax.get_xlabel() for ax in figure.axes[::3]] == ["query: b", "query: b"]
        plt.close(figure)


def test_a_soft_label_of_images_with_two_channels() -> None:
    for query in (2, np.int64(2), torch.tensor(2)):
        figure = plot_soft_label(shown(2), VECTORS.numpy(), query, k=2)
        assert figure.axes[0].get_xlabel() == "query: a"
        assert figure.axes[0].images[0].get_array().shape == (16, 16)
        plt.close(figure)


@pytest.mark.parametrize("rows", [[], [6], [-1], np.array([0, 9]), torch.tensor([], dtype=torch.long), [[1]]])
def test_rows_that_are_none_of_the_queries(rows: Any) -> None:
    found = refusal(plot_neighbours, shown(), VECTORS, shown(), VECTORS, rows)
    assert "rows must name some of the 6 queries, from 0 to 5" in found
    found = refusal(plot_neighbours, shown(), VECTORS, shown(), VECTORS, 3)
    assert "rows must be several numbers, such as [3]" in found


def test_features_of_other_images_draw_no_neighbours() -> None:
    images, fewer = shown(), VECTORS[:4]
    assert "6 queries, but features of 4" in refusal(plot_neighbours, images, fewer, images, VECTORS, [0])
    assert "6 images in the bank, but features of 4" in refusal(plot_neighbours, images, VECTORS, images, fewer, [0])
    assert "6 images, but features of 4" in refusal(plot_soft_label, images, fewer, 0)
    assert "whole numbers" in refusal(plot_neighbours, images, VECTORS, images, VECTORS, [0.5])


def test_what_is_no_query() -> None:
    for query in (torch.tensor(0.5), 1.5, True, "x", None):
        assert "a query" in refusal(look_up, VECTORS, query)
    assert "there is no image 6" in refusal(look_up, VECTORS, torch.tensor(6))
    for query in (torch.tensor(2), np.int64(2), np.array(2)):
        assert torch.equal(look_up(VECTORS, query).rows, look_up(VECTORS, 2).rows)
    assert torch.equal(look_up(VECTORS, VECTORS[2].numpy()).rows, look_up(VECTORS, VECTORS[2]).rows)


def test_labels_and_classes_of_a_look_up() -> None:
    labels = [0, 1, 2, 0, 1, 2]
    counted, given = look_up(VECTORS, 0, labels=labels), look_up(VECTORS, 0, labels=labels, classes=3)
    assert torch.equal(counted.by_class, given.by_class)
    assert len(look_up(VECTORS, 0, labels=labels, classes=5).by_class) == 5
    assert "more than the 2 classes given" in refusal(look_up, VECTORS, 0, labels=labels, classes=2)
    assert "labels must be 6 integers" in refusal(look_up, VECTORS, 0, labels=labels[:5], classes=3)
    assert "must be 0 or more" in refusal(look_up, VECTORS, 0, labels=[-1] * 6, classes=3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_have_no_neighbours(value: float) -> None:
    for row in (0, 4):
        wrong = VECTORS.clone()
        wrong[row, 2] = value
        assert "NaN or infinite" in refusal(look_up, wrong, 0)
        assert "NaN or infinite" in refusal(plot_soft_label, shown(), wrong, 0)
    assert "NaN or infinite" in refusal(look_up, VECTORS, torch.full((4,), value))


PLACES = torch.rand(6, 2, generator=G)


@pytest.mark.parametrize("places", [PLACES, PLACES.numpy(), PLACES.tolist()])
def test_places_in_any_form(places: Any) -> None:
    gallery = gallery_of(shown(), {("n", np.int64(3)): VECTORS}, {("n", 3): places}, show=False)
    np.testing.assert_array_equal(np.float32(gallery.places["n", 3]), PLACES)
    describe(gallery)
    assert json.dumps(gallery.steps) == "[3]"


def test_places_of_other_images() -> None:
    features = {("n", 0): VECTORS}
    assert "places of the n at step 0 are missing" in refusal(gallery_of, shown(), features, {})
    none = torch.full((6, 2), float("nan"))
    for places in (PLACES[:5], none, np.full((6, 2), np.inf), PLACES.flatten(), torch.rand(6, 3)):
        found = refusal(gallery_of, shown(), features, {("n", 0): places})
        assert "places of the n at step 0 must be finite numbers of shape (6, 2)" in found
    assert "not as a list" in refusal(gallery_of, shown(), features, [PLACES])
    assert "not as a Tensor" in refusal(gallery_of, shown(), features, PLACES)


def test_features_without_an_encoder_and_a_step() -> None:
    assert 'such as {("teacher", 0): features}, not as a Tensor' in refusal(gallery_of, shown(), VECTORS)
    for key in ("n", ("n",), ("n", 0.5), (0, "n"), ("n", 0, 1)):
        assert 'such as ("teacher", 0), not by ' in refusal(gallery_of, shown(), {key: VECTORS})
    for temperature in (0, -1, "x", None, float("nan"), float("inf"), True):
        found = refusal(gallery_of, shown(), {("n", 0): VECTORS}, temperature=temperature)
        assert "a temperature must be a positive number" in found


@pytest.mark.parametrize(("name", "value"), [
    ("crop_scale", 0.5), ("crop_scale", "ab"), ("crop_ratio", (1, "2")), ("blur_sigma", None), ("crop_scale", (0.5,)),
    ("flip", "0.5"), ("flip", None), ("noise", [0.1]), ("hue", float("nan")), ("flip", 2)])
def test_settings_of_views(name: str, value: object) -> None:
    assert refusal(ViewRecipe, **{name: value}).startswith(f"{name} is {value!r}; it must ")


def test_views_of_a_size_in_numpy() -> None:
    views = Views(STRONG, np.int64(16))
    assert type(views.size) is int and views(BYTES, torch.Generator()).shape == (6, 3, 16, 16)
    for size in (True, 16.0, "16", np.float64(16), 0, None):
        assert "whole number of pixels" in refusal(Views, STRONG, size)
    assert "such as STRONG, not 'strong'" in refusal(Views, "strong", 16)
    assert ViewRecipe(crop_scale=[np.float32(0.5), 1], flip=np.float64(0.5), noise=True).crop_scale == (0.5, 1)


@pytest.mark.parametrize("k", [2.0, True, "5", None])
def test_neighbours_are_counted_in_whole_numbers(k: Any) -> None:
    labels = torch.arange(6) % 2
    assert "k must be a whole number of neighbours, not" in refusal(knn_accuracy, VECTORS, labels, VECTORS, labels, k)
    assert knn_accuracy(VECTORS, labels, VECTORS, labels, np.int64(1)) == 1
