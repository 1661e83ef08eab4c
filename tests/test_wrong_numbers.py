"""Pixels that are normalised already, classifiers that diverged: numbers that give no result, and no wrong one either."""
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as tv
from torch import Tensor, nn

from isd_nb import STRONG, ImageSet, Views, embed
from isd_nb.encoders import BackboneConfig, Encoder, FrozenEncoder, build_backbone
from isd_nb.errors import refusal
from isd_nb.evaluation import fit_linear, linear_accuracy, score
from isd_nb.protocols.fine_tuning import FINETUNE, finetune

G = torch.Generator().manual_seed(0)
FLOATS = torch.rand(6, 3, 16, 16, generator=G)
BYTES = (255 * FLOATS).to(torch.uint8)
IMAGENET = tv.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def both(images: Tensor) -> list[str]:
    "How views and encoders refuse these images."
    encoder = FrozenEncoder(build_backbone(BackboneConfig("tiny")), [0.5] * 3, [0.5] * 3)
    return [refusal(Views(STRONG, 8), images, torch.Generator()), refusal(encoder, images)]


@pytest.mark.parametrize("normalised", [IMAGENET(FLOATS), 2 * FLOATS - 1, IMAGENET(FLOATS).contiguous(memory_format=torch.channels_last)])
def test_images_that_are_normalised_already(normalised: Tensor) -> None:
    low, high = float(normalised.min()), float(normalised.max())
    for found in both(normalised):
        assert f"values from {low:.3g} to {high:.3g}: they are normalised already" in found and "without Normalize" in found


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
    assert "logits hold NaN: the classifier has diverged; choose a smaller learning rate" in refusal(score, values([[float("nan"), 1.0, 2.0]]), [0])
    assert score(values([[-float("inf"), 1.0, 2.0]]), [2]).top1 == 1.0  # a class that is left out
    assert score(torch.tensor([[3, 1]]), [0]).top1 == 1.0


def test_a_linear_layer_that_diverged_has_no_accuracy() -> None:
    features, labels = torch.randn(40, 5, generator=G), torch.arange(40) % 4
    assert "choose a smaller learning rate" in refusal(linear_accuracy, features, labels, features, labels, learning_rate=1e30, min_steps=20, epochs=1)


def test_a_whole_network_that_diverged_has_no_accuracy() -> None:
    encoder = Encoder(build_backbone(BackboneConfig("tiny")), [0.5] * 3, [0.5] * 3)
    images = ImageSet(BYTES, torch.arange(6) % 2)
    wild = replace(FINETUNE, head_rate=1e38, epochs=1, min_steps=6, batch_size=2)
    assert "choose a smaller learning rate" in refusal(finetune, encoder, images, images, 1.0, tuning=wild)


@pytest.mark.parametrize(("name", "value"), [
    ("learning_rate", float("nan")), ("learning_rate", -0.01), ("learning_rate", 0), ("learning_rate", "0.1"), ("weight_decay", -1.0), ("weight_decay", None),
    ("batch_size", 0), ("batch_size", -1), ("batch_size", 2.0), ("batch_size", True), ("epochs", -1), ("epochs", 1.5), ("min_steps", "x")])
def test_settings_of_a_linear_layer(name: str, value: object) -> None:
    assert refusal(fit_linear, torch.randn(8, 5, generator=G), torch.arange(8) % 2, **{name: value}).startswith(f"{name} must be a")


def test_settings_of_a_linear_layer_in_numpy() -> None:
    numbers = dict(learning_rate=np.float32(0.01), weight_decay=0, batch_size=np.int64(4), epochs=np.int32(1), min_steps=0)
    fit_linear(torch.randn(8, 5, generator=G), torch.arange(8) % 2, **numbers)


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
        assert f"unknown precision {precision}: known: bfloat16, float32" in refusal(embed, nn.Flatten(), BYTES, precision=precision)


def test_an_encoder_whose_width_depends_on_the_batch() -> None:
    found = refusal(embed, lambda images: images.new_zeros(len(images), 2 + len(images)), BYTES, batch_size=4)
    assert "the encoder returns features of the shape (4,) for one image, but (6,) for one of an earlier batch" in found
