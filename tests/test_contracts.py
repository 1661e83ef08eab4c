"""What others rely on: names and their signatures, one meaning for a name, old names, and a package that opens at once."""
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from isd_nb.encoders import load_encoder
from isd_nb.evaluation import knn_accuracy, linear_accuracy
from isd_nb.isd import ISD, Method
from isd_nb.loss import soft_label_loss, soft_labels, streaming_soft_label_loss
from isd_nb.queue import AnchorQueue
from isd_nb.teacher import EMATeacher
from isd_nb.views import STRONG, Views

PACKAGE = Path(__file__).parent.parent / "isd_nb"
TEMPERATURES = dict(student_temperature=0.1, teacher_temperature=0.02)
FOUR = ("train_features", "train_labels", "test_features", "test_labels")

# The arguments that a caller may rely on, in their order, and the defaults that have been promised.
SIGNATURES: list[tuple[Callable, tuple[str, ...], dict[str, Any]]] = [
    (AnchorQueue, ("size", "dim"), {}),
    (AnchorQueue.enqueue, ("self", "keys"), {}),
    (soft_labels, ("keys", "anchors", "temperature"), {}),
    (soft_label_loss, ("queries", "keys", "anchors", *TEMPERATURES), TEMPERATURES),
    (streaming_soft_label_loss, ("queries", "keys", "anchors", *TEMPERATURES), TEMPERATURES),
    (EMATeacher, ("student", "momentum"), {"momentum": 0.99}),
    (EMATeacher.update, ("self", "student"), {}),
    (ISD.forward, ("self", "view_q", "view_k"), {}),
    (Method.update, ("self", "output"), {}),
    (Views, ("recipe", "size"), {}),
    (load_encoder, ("path", "which"), {"which": "teacher"}),
    (knn_accuracy, (*FOUR, "k"), {"k": 20}),
    (linear_accuracy, FOUR, {}),
]


def unit(*shape: int) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))), dim=1)


@pytest.mark.parametrize("function, names, defaults", SIGNATURES, ids=lambda v: getattr(v, "__qualname__", ""))
def test_a_promised_name_takes_what_was_promised(function: Callable, names: tuple[str, ...], defaults: dict) -> None:
    found = inspect.signature(function).parameters
    assert tuple(found)[:len(names)] == names
    assert {name: found[name].default for name in defaults} == defaults
    more = [p for name, p in found.items() if name not in names and p.kind is not p.VAR_KEYWORD]
    assert all(p.default is not p.empty for p in more), "an argument more must have a default"


def test_the_queue_keeps_the_order_of_any_number_of_keys() -> None:
    queue, keys = AnchorQueue(4, 3), unit(7, 3)
    assert set(queue.state_dict()) == {"anchors", "count"} and queue.anchors.shape == (4, 3)
    torch.testing.assert_close(queue.anchors.norm(dim=1), torch.ones(4))
    queue.enqueue(keys[:1])
    queue.enqueue(keys[1:])  # more than fit
    torch.testing.assert_close(queue.ordered(), keys[-4:])


def test_both_losses_have_one_value_and_one_gradient() -> None:
    queries, keys, anchors = unit(5, 3), unit(6, 3)[:5], unit(8, 3)
    labels = soft_labels(keys, anchors, 0.02)
    assert labels.shape == (5, 8)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(5))
    values, gradients = [], []
    for loss in (soft_label_loss, streaming_soft_label_loss):
        own = queries.clone().requires_grad_()
        values.append(loss(own, keys, anchors))
        gradients += torch.autograd.grad(values[-1], own)
    assert values[0].shape == ()
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_the_teacher_is_called_like_a_module_and_follows() -> None:
    student = nn.Linear(3, 2)
    teacher, images = EMATeacher(student), torch.randn(4, 3)
    torch.testing.assert_close(teacher(images), student(images).detach())
    before = student.weight.detach().clone()
    with torch.no_grad():
        student.weight += 1
    teacher.update(student)
    torch.testing.assert_close(teacher.module.weight, before + 0.01)


def test_forward_changes_nothing_and_update_moves_teacher_and_queue() -> None:
    method = ISD(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), queue_size=6)
    assert isinstance(method, Method) and isinstance(method, nn.Module)
    views = torch.rand(2, 3, 2, 2), torch.rand(2, 3, 2, 2)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    output = method(*views)
    assert output.loss.shape == () and output.keys is not None and output.keys.shape == (2, 3)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    output.loss.backward()
    with torch.no_grad():
        for weight in method.student.parameters():
            weight -= weight.grad
    method.update(output)
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("teacher.") for name in moved) and any(name.startswith("queue.") for name in moved)


def test_views_are_images_of_the_size_asked_for() -> None:
    images = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8)
    made = Views(STRONG, 8)(images, torch.Generator().manual_seed(0))
    assert made.shape == (2, 3, 8, 8) and made.dtype == torch.float32 and 0 <= made.min() <= made.max() <= 1


def test_an_encoder_is_a_frozen_module_from_images_to_features() -> None:
    encoder = load_encoder(PACKAGE / "shipped" / "digits.safetensors")
    assert isinstance(encoder, nn.Module) and not any(p.requires_grad for p in encoder.parameters())
    features = encoder(torch.rand(2, 1, 16, 16))
    assert features.dtype == torch.float32 and features.ndim == 2 and len(features) == 2 and not encoder.training


def test_scores_are_numbers_between_0_and_1() -> None:
    features, labels = torch.cat([torch.randn(30, 4) + 9, torch.randn(30, 4) - 9]), torch.arange(60) // 30
    for score in (knn_accuracy, linear_accuracy):
        assert isinstance(found := score(features, labels, features, labels), float) and found == 1.0
