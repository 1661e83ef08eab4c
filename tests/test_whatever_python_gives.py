"""What Python users have at hand, NumPy numbers, texts and empty sets, is taken or refused in one sentence."""
import numpy as np
import pytest
import torch

from isd_nb import AnchorQueue, ImageSet, embed, knn_accuracy, streaming_soft_label_loss
from isd_nb.data import held_out
from isd_nb.errors import InputError
from isd_nb.kernels.linear_classifier import fit_linear

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
