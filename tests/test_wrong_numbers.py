"""Pixels that are normalised already, classifiers that diverged: numbers that give no result, and no wrong one either."""
import pytest
import torch
import torchvision.transforms.v2 as tv
from torch import Tensor

from isd_nb import STRONG, Views
from isd_nb.encoders import BackboneConfig, FrozenEncoder, build_backbone
from isd_nb.errors import refusal

G = torch.Generator().manual_seed(0)
FLOATS = torch.rand(6, 3, 16, 16, generator=G)
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
