"""When ISD reads its queue by products in bfloat16, and that nobody else's loss is rounded without being asked."""
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isd_nb.kernels.attention
import isd_nb.kernels.bfloat16_attention
from isd_nb.isd import ISD
from isd_nb.loss import streaming_soft_label_loss


def small_isd(anchors: int, rows: int, teacher: float) -> tuple[ISD, Tensor, Tensor]:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(48, 24))
    return ISD(student, queue_size=anchors, teacher_temperature=teacher), *torch.rand(2, rows, 3, 4, 4)


def rounded_reads(anchors: int, autocast: torch.dtype | None, native: bool, rows: int = 128,
                  teacher: float = 0.02) -> tuple[int, float]:
    "How often the queue was read by bfloat16 products in one forward, and the loss."
    method, *views = small_isd(anchors, rows, teacher)
    with patch.object(isd_nb.kernels.bfloat16_attention, "has_bfloat16", lambda device: native), \
            patch.object(isd_nb.kernels.attention, "bfloat16_attention",
                         wraps=isd_nb.kernels.bfloat16_attention.bfloat16_attention) as read, \
            torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        output = method(*views)
        output.loss.backward()
    assert output.loss.dtype == torch.float32 and all(p.grad.isfinite().all() for p in method.student.parameters())
    return read.call_count, output.loss.item()


@pytest.mark.parametrize("anchors, autocast, native, expected", [
    (12_000, torch.bfloat16, True, 1),
    (12_000, torch.bfloat16, False, 0),  # slower there
    (12_000, torch.float16, True, 0),
    (12_000, None, True, 0),  # a net in single precision keeps its loss in single precision
    (10_000, torch.bfloat16, True, 0),  # nothing to gain
])
def test_the_queue_is_rounded_only_where_the_net_is_and_it_pays(
        anchors: int, autocast: torch.dtype | None, native: bool, expected: int) -> None:
    assert rounded_reads(anchors, autocast, native)[0] == expected


@pytest.mark.parametrize("case", [dict(rows=120), dict(teacher=0.1), dict(teacher=0.2)], ids=str)
def test_few_queries_and_a_teacher_that_is_no_colder_keep_single_precision(case: dict[str, float]) -> None:
    "Copies cost more than products gain, and near agreement a rounded gradient is off by a tenth and more."
    assert rounded_reads(12_000, torch.bfloat16, True, **case)[0] == 0


def test_the_loss_is_the_same_but_for_rounding() -> None:
    rounded, exact = (rounded_reads(12_000, torch.bfloat16, native)[1] for native in (True, False))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.005)


@pytest.mark.parametrize("student, teacher", [(0.02, 0.02), (0.1, 0.02), (0.1, 0.01), (0.1, 0.04)])
def test_a_queue_with_several_keys_of_each_image(student: float, teacher: float) -> None:
    "The largest logits, of an image's own keys, are far above those of the anchors that the top is taken from."
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(1024, 128, generator=generator), dim=1)
    queries, keys, anchors = (F.normalize(x + 0.3 * torch.randn(x.shape, generator=generator) / 128 ** 0.5, dim=1)
                              for x in (images[:200], images[:200], images.repeat(4, 1)))

    def gradient(products: torch.dtype) -> Tensor:
        leaf = queries.clone().requires_grad_()
        streaming_soft_label_loss(leaf, keys, anchors, student, teacher, products=products).backward()
        return leaf.grad

    exact = gradient(torch.float32)
    assert (gradient(torch.bfloat16) - exact).norm() < 0.04 * exact.norm()


def test_under_autocast_the_loss_alone_stays_in_single_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, anchors = (torch.randn(n, 24, generator=generator) for n in (10, 10, 5000))
    with torch.autocast("cpu", torch.bfloat16):
        under = streaming_soft_label_loss(queries, keys, anchors, 2.0, 1.0)
    torch.testing.assert_close(under, streaming_soft_label_loss(queries, keys, anchors, 2.0, 1.0), rtol=0, atol=0)


def test_other_products_are_refused() -> None:
    with pytest.raises(ValueError, match=r"products must be .*, not torch\.float16"):
        streaming_soft_label_loss(*torch.eye(6)[None].expand(3, -1, -1), products=torch.float16)
