"""What Python users have at hand, NumPy numbers, texts and empty sets, is taken or refused in one sentence."""
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset
from torchvision.transforms import v2

from isd_nb import (
    ISD, STRONG, AnchorQueue, ImageSet, Views, embed, knn_accuracy, soft_label_loss, soft_labels,
    streaming_soft_label_loss, train)
from isd_nb.data import decode_image, held_out
from isd_nb.embedding import embed_all
from isd_nb.encoders import load_encoder
from isd_nb.errors import InputError, refusal
from isd_nb.kernels.devices import pick_device
from isd_nb.kernels.linear_classifier import fit_linear
from isd_nb.recipe import Recipe, find_recipe
from isd_nb.sources.datasets import channel_axis

from_dataset = ImageSet.from_dataset

G = torch.Generator().manual_seed(0)
PIXELS = torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8, generator=G)
FEATURES = torch.randn(12, 5, generator=G)
LABELS = torch.arange(12) % 4


def test_a_text_is_no_list_of_classes():
    with pytest.raises(InputError, match=r"names of all classes, such as \('cat', 'dog'\), not the text 'cat'"):
        ImageSet(PIXELS, torch.zeros(6, dtype=torch.long), classes="cat")


def test_paths_may_be_texts_and_are_as_many_as_images():
    images = ImageSet(PIXELS, paths=[f"{i}.png" for i in range(6)])
    assert images.subset([2]).paths[0].name == "2.png"
    with pytest.raises(InputError, match="6 images but 2 paths"):
        ImageSet(PIXELS, paths=["a.png", "b.png"])


def test_files_need_the_shape_in_which_they_are_read():
    with pytest.raises(InputError, match=r"such as shape=\(3, 224, 224\), not \(0, 0, 0\)"):
        ImageSet(None, paths=["a.png", "b.png"])


def test_nothing_can_be_held_out_without_labels():
    with pytest.raises(InputError, match="have no labels"):
        held_out(ImageSet(PIXELS))


def test_pixels_of_numpy_are_embedded():
    flat = embed(lambda x: x.flatten(1), PIXELS.numpy())
    assert torch.equal(flat, PIXELS.flatten(1).float() / 255)
    with pytest.raises(InputError, match="images must be uint8 of shape"):
        embed(lambda x: x.flatten(1), PIXELS.float().numpy())


def test_numbers_of_numpy_are_sizes():
    queue = AnchorQueue(np.int64(5), np.int64(4))
    q, k = (torch.nn.functional.normalize(torch.randn(3, 4, generator=G), dim=1) for _ in range(2))
    blocks = [streaming_soft_label_loss(q, k, queue.anchors, 0.1, 0.05, block=b) for b in (np.int64(2), 2)]
    assert torch.equal(*blocks)


def test_a_linear_layer_needs_images_of_the_classes_it_has():
    with pytest.raises(InputError, match="labels go up to 3, so there are more than the 2 classes given"):
        fit_linear(FEATURES, LABELS, 2)
    with pytest.raises(InputError, match="at least one training image"):
        fit_linear(FEATURES[:0], LABELS[:0])
    with pytest.raises(InputError, match="NaN or infinite"):
        fit_linear(torch.where(torch.arange(12)[:, None] == 3, torch.nan, FEATURES), LABELS)


def test_features_that_single_precision_cannot_hold_are_refused():
    huge = FEATURES.double() * 1e60
    with pytest.raises(InputError, match="train features hold NaN or infinite"):
        knn_accuracy(huge, LABELS, huge, LABELS, k=1)


def deep(value: float, kind: str = "i4") -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, kind))


def test_deep_images_of_a_data_set_share_one_scale() -> None:
    with pytest.warns(UserWarning, match=r"whole numbers of more than 8 bits from 0 \(black\) to 4095 \(white\), as "):
        found = from_dataset([deep(v, kind) for v, kind in ((200, "i4"), (300, "u2"), (4000, "u2"))])
    assert found.images[:, 0, 0, 0].tolist() == [12, 19, 249]
    with pytest.warns(UserWarning, match=r"floating-point numbers from -1 \(black\) to 1 \(white\)"):
        assert from_dataset([deep(-1, "f4"), deep(0, "f4"), deep(1, "f4")]).images[:, 0, 0, 0].tolist() == [0, 128, 255]
    with pytest.warns(UserWarning, match=r"to 4095 \(white\), as given by white=$"):
        assert from_dataset([deep(2048, "u2")], white=4095).images.unique().tolist() == [128]
    with pytest.warns(UserWarning, match="white is for values of more than 8 bits, and no image has any"):
        from_dataset([Image.new("L", (8, 8))], white=4095)
    assert "image 1 of the data set cannot be read" in refusal(from_dataset, [deep(1, "f4"), deep(np.nan, "f4")])
    assert "white must be positive" in refusal(from_dataset, [deep(1)], white=0)


def test_images_of_eight_bits_are_read_once_and_deep_ones_twice() -> None:
    class Counting(list):
        def __getitem__(self, i: Any) -> Any:
            read.append(i)
            return super().__getitem__(i)

    read: list[int] = []
    from_dataset(Counting([Image.new("L", (8, 8))] * 3))
    assert read == [0, 1, 2]
    read.clear()
    with pytest.warns(UserWarning, match="to 7 "):
        from_dataset(Counting([Image.new("L", (8, 8)), deep(7), deep(5)]))
    assert sorted(read) == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (33, 33)])
def test_an_image_is_cut_alike_however_it_is_given(size: tuple[int, int], tmp_path: Any) -> None:
    rows, columns = np.mgrid[:size[0], :size[1]]
    pixels = np.stack([6 * rows, 6 * columns, 3 * rows + 3 * columns], 2).astype(np.uint8)
    first, tensor = pixels.transpose(2, 0, 1), torch.tensor(pixels)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    turned = torch.tensor(first)
    for way in (Image.fromarray(pixels), pixels, first, tensor, turned, tensor / 255, turned / 255):
        assert from_dataset([way], 8).images[0].equal(decode_image(tmp_path / "a.png", 8))
        assert from_dataset([way]).images[0].equal(turned)
    bands = from_dataset([np.concatenate([pixels, pixels], 2)], 8).images[0]  # 6 channels, each by itself
    assert bands[:3].equal(bands[3:]) and bands[:3].equal(decode_image(tmp_path / "a.png", 8))


def test_the_channels_of_an_image_are_found_by_its_shape() -> None:
    bands, grid = np.zeros((6, 16, 16), np.uint8), torch.zeros(16, 16, 6)
    assert from_dataset([bands]).shape == from_dataset([grid]).shape == (6, 16, 16)
    for other in (bands.transpose(1, 2, 0), grid.permute(2, 0, 1)):
        assert from_dataset([other], 8).shape == (6, 8, 8)
    for shape in ((16, 16, 16), (16, 12, 10), (64, 32, 32), (8, 4, 4)):  # as tensors are by custom
        assert from_dataset([torch.zeros(shape)]).shape == shape
    for unclear in (torch.zeros(20, 12, 10), np.zeros((64, 224, 224), np.uint8)):
        assert "no dimension is plainly that of the channels" in refusal(from_dataset, [unclear])


class Stream(IterableDataset):
    "Two images, one after the other."

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        yield from zip(PIXELS[:2], (0, 1))


class Ending(Stream):
    "The same, of known length."

    def __len__(self) -> int:
        return 2


def test_what_can_be_counted_is_a_data_set() -> None:
    assert from_dataset(Ending()).images.equal(PIXELS[:2]) and from_dataset(list(Stream())).labels.tolist() == [0, 1]
    assert "give list(dataset), if it ends" in refusal(from_dataset, Stream())
    assert "which is loader.dataset" in refusal(from_dataset, DataLoader(Ending()))


def test_sizes_and_names_of_a_data_set() -> None:
    pairs = [(image, i % 2) for i, image in enumerate(PIXELS)]
    assert from_dataset(pairs, 8.0, np.array(["cat", "dog"])).classes == ("cat", "dog")
    assert from_dataset(pairs, np.int64(4)).shape == (1, 4, 4)
    for size in ((16, 16), "16", -4, 0, 8.5, float("nan"), True):
        assert "size must be a whole number of pixels" in refusal(from_dataset, pairs, size)
    assert "such as ('cat', 'dog'), not the text 'cat'" in refusal(from_dataset, pairs, classes="cat")
    assert "not 2" in refusal(from_dataset, pairs, classes=2)


@pytest.mark.parametrize("empty", [Image.new("L", (0, 8)), np.zeros((0, 8, 3), np.uint8), torch.zeros(3, 8, 0)])
def test_an_image_without_pixels_is_named(empty: Any) -> None:
    for size in (None, 8):
        assert "image 1 of the data set has no pixels" in refusal(from_dataset, [PIXELS[0], empty], size)


class Named(list):
    "A data set with names of its own."

    def __init__(self, classes: Any) -> None:
        super().__init__([(image, i % 2) for i, image in enumerate(PIXELS)])
        self.classes = classes


def test_parts_of_a_data_set_keep_the_names_of_its_classes(recwarn: pytest.WarningsRecorder) -> None:
    pets, other = Named(["cat", "dog"]), Named(["cat", "cow"])
    part = Subset(pets, [1, 2])
    for dataset in (pets, part, Subset(part, [0]), ConcatDataset([pets, part])):
        assert from_dataset(dataset).classes == ("cat", "dog")
    assert from_dataset(Named(None)).classes == from_dataset(ConcatDataset([list(pets)])).classes == ("0", "1")
    assert not recwarn.list and "not a function" in refusal(from_dataset, Named(pets.copy))
    with pytest.warns(UserWarning, match="name their classes differently"):
        assert from_dataset(ConcatDataset([pets, other])).classes == ("0", "1")


def test_channels_that_come_last_are_refused() -> None:
    for channels in (1, 3, 4):
        last = torch.rand(4, 20, 20, channels)
        assert "have their channels last; a batch is (B, C, H, W)" in refusal(Views(STRONG, 16), last, G)
        assert Views(STRONG, 16)(last.permute(0, 3, 1, 2), G).shape == (4, channels, 16, 16)
        assert channels == 1 or "channels last" in refusal(ImageSet, (255 * last[:, :, 1:]).byte())
    assert Views(STRONG, 16)(torch.rand(4, 20, 20, 20), G).shape == (4, 20, 16, 16)


@pytest.mark.parametrize(("shape", "last"), [
    ((6, 20, 3), True), ((16, 20, 3), True), ((20, 20, 1), True), ((20, 20, 3), True), ((20, 12, 4), True),
    ((5, 6, 1), True),
    ((1, 20, 20), False), ((3, 20, 20), False), ((3, 20, 4), False), ((4, 20, 20), False), ((2, 20, 20), False),
    ((6, 16, 16), False), ((16, 20, 20), False), ((64, 32, 32), False), ((8, 4, 4), False), ((20, 3, 3), False),
])
def test_all_doors_agree_on_where_the_channels_are(shape: tuple[int, int, int], last: bool) -> None:
    images = torch.zeros(4, *shape, dtype=torch.uint8)
    assert channel_axis(shape, 0) == (2 if last else 0)
    if last:
        assert "channels last" in refusal(ImageSet, images) and "channels last" in refusal(Views(STRONG, 16), images, G)
    else:
        assert ImageSet(images).shape == shape and Views(STRONG, 16)(images, G).shape == (4, shape[0], 16, 16)


OUTPUTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "the encoder returns a tuple of 2, not a tensor of features": lambda x: (x, x),
    "the encoder returns a list of 1": lambda x: [x],
    "the encoder returns a dict of logits, hidden": lambda x: {"logits": x, "hidden": x},
    "the encoder returns a NoneType": lambda x: None,
    "the encoder returns the shape (1, 64) for 6 images": lambda x: x.flatten(1)[:1],
    "the encoder returns the shape () for 6 images": torch.mean,
    "has weights of float16, but images are float32: net.float()": torch.nn.Conv2d(1, 2, 3).half(),
    "has weights of bfloat16": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)).bfloat16(),
    "takes images of 3 channels, but these are (1, 8, 8) (C, H, W)": torch.nn.Conv2d(3, 2, 3),
    "does not take images of (1, 8, 8) (C, H, W): ": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)),
}


@pytest.mark.parametrize("words", OUTPUTS)
def test_an_encoder_that_returns_no_features_is_refused(words: str) -> None:
    assert words in refusal(embed, OUTPUTS[words], PIXELS)


def test_encoders_of_other_kinds_are_taken() -> None:
    flat = PIXELS.flatten(1).float() / 255
    assert torch.equal(embed(lambda x: x.flatten(1).numpy(), PIXELS, batch_size=np.int64(4)), flat)
    half = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)).half()
    assert embed(half, PIXELS, precision="bfloat16").shape == (6, 2)
    for size in (0, -1, 2.0, "8", True):
        assert "batch_size must be a whole number of images, at least 1" in refusal(embed, half, PIXELS, size)
    with pytest.raises(RuntimeError, match="of its own"):
        embed(own_error, PIXELS)


class Rows(torch.nn.Module):
    "Writes into its images, then views them as rows: that fails where channels lie last."

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        images.mul_(2)
        return images.view(len(images), -1)


def test_a_network_that_fails_for_the_order_gets_all_batches_in_the_other() -> None:
    pixels = (torch.arange(10 * 192) % 251).byte().view(10, 3, 8, 8)
    rows, flat = Rows(), pixels.flatten(1) / 255
    found = embed_all({"rows": rows, "after": torch.nn.Flatten()}, pixels, batch_size=4)
    assert torch.equal(found["rows"], 2 * flat) and torch.equal(found["after"], flat)
    assert rows.calls == 4  # the first of three batches twice


@pytest.mark.parametrize("words", ["my cache has no dtype yet", "no scalar type is known", "Input type of my own"])
def test_an_error_of_a_network_with_half_weights_may_be_of_its_own(words: str) -> None:
    class Cached(torch.nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError(words)
    with pytest.raises(RuntimeError, match=words) as caught:
        embed(Cached(64, 2).half(), PIXELS)
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize("layer", [torch.nn.LayerNorm(8), torch.nn.BatchNorm2d(1), torch.nn.ConvTranspose2d(1, 2, 3),
                                   torch.nn.Sequential(torch.nn.Flatten(1, 2), torch.nn.TransformerEncoderLayer(8, 2))])
def test_layers_of_half_weights_are_named(layer: torch.nn.Module) -> None:
    assert "has weights of float16" in refusal(embed, layer.half(), PIXELS)


def own_error(images: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("an error of its own")


def test_vectors_lie_on_one_device():
    here, away = torch.eye(3), torch.eye(3, device="meta")
    for loss in (soft_label_loss, streaming_soft_label_loss):
        assert "queries are on cpu and anchors on meta: bring both" in refusal(loss, here, here, away)
        assert "queries are on cpu and keys on meta: bring both" in refusal(loss, here, away, here)
    assert "keys are on cpu and anchors on meta: bring both" in refusal(soft_labels, here, away)


def test_losses_state_what_they_are_of_where_help_shows_it():
    for loss in (soft_labels, soft_label_loss, streaming_soft_label_loss):
        assert loss.__doc__.startswith("Of unit vectors: ")


def test_an_encoder_is_differentiated_and_mapped_without_a_warning():
    encoder, images = load_encoder("shipped:digits"), torch.rand(3, 1, 16, 16)
    plain, weights = encoder(images), dict(encoder.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert encoder(images.clone().requires_grad_()).requires_grad
    each = torch.func.vmap(encoder)(images[:, None])[:, 0]
    torch.testing.assert_close(each, plain)
    def norm(weights: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(encoder, weights, image[None]).norm()
    for gradient in torch.func.vmap(torch.func.grad(norm), (None, 0))(weights, images).values():
        assert len(gradient) == 3 and gradient.isfinite().all()
    with pytest.raises(InputError, match="normalised already"):
        encoder((images - 1).requires_grad_())


def test_views_take_a_generator_or_that_of_torch():
    for given, more in ((3, {}), (None, dict(part=(0, len(PIXELS), len(PIXELS) + 1)))):  # processes must draw alike
        sentence = refusal(Views(STRONG, 8), PIXELS, given, **more)
        assert "generator must be a torch.Generator" in sentence and type(given).__name__ in sentence
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = v2.Compose([Views(STRONG, 8), v2.Identity()])(PIXELS)
        assert not torch.equal(Views(STRONG, 8)(PIXELS), made)
    assert torch.equal(made, Views(STRONG, 8)(PIXELS, torch.Generator().manual_seed(3)))


SHORT = replace(find_recipe("digits"), steps=1, batch_size=2, queue_size=4, width=4, evaluations=1)


def test_a_run_takes_a_device_of_pytorch(tmp_path):
    train(SHORT, ImageSet(PIXELS), tmp_path / "run", device=torch.device("cpu"), threads=1)
    with pytest.raises(InputError, match="unknown device 'None'"):
        train(SHORT, ImageSet(PIXELS), tmp_path / "other", device=None)


@pytest.mark.parametrize("given", [torch.nn.Linear(2, 2), vars(SHORT), None])
def test_a_recipe_is_a_recipe_or_its_name(given):
    sentence = refusal(train, given, ImageSet(PIXELS), "nowhere")
    assert f"the name of one, not {type(given).__name__}: isd_nb.recipe.find_recipe(" in sentence


def test_a_run_has_a_directory_and_computes_in_single_precision():
    assert "out must be the directory of the run" in refusal(train, SHORT, ImageSet(PIXELS), None)
    torch.set_default_dtype(torch.float64)
    try:
        sentence = refusal(train, SHORT, ImageSet(PIXELS), "nowhere")
        assert "has chosen float64: call torch.set_default_dtype(torch.float32)" in sentence
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_network_is_named_in_a_recipe():
    def mine(channels):
        return torch.nn.Conv2d(channels, 8, 3)

    for given, kind in ((mine(3), "Conv2d"), (mine, "mine")):
        assert f"must be a text, not {kind} itself: name a function" in refusal(Recipe, "mine", backbone=given)
    assert "not ISD itself: name the class as package.module:Class" in refusal(Recipe, "mine", method=ISD)
    assert "backbone must be a text, not 3" in refusal(Recipe, "mine", backbone=3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named_for_python_too():
    assert 'use device="cpu" (--device cpu), or auto' in refusal(pick_device, "cuda")
