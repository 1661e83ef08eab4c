"The moving average: exact at its ends, strict about partners, and only over parameters."
import copy
import math
import threading
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from isd_nb.encoders import Encoder
from isd_nb.errors import refusal
from isd_nb.isd import ISD
from isd_nb.teacher import EMATeacher, cosine_momentum


def filled(value: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    "A small network whose parameters are all `value`."
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)
    for p in net.parameters():
        nn.init.constant_(p, value)
    return net


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_closed_form(dtype: torch.dtype) -> None:
    student, teacher = filled(1, dtype), EMATeacher(filled(0, dtype), momentum=0.97)
    for _ in range(150):
        teacher.update(student)
    for p in teacher.parameters():
        assert_close(p, torch.full_like(p, 1 - 0.97**150))


def test_the_ends_are_exact() -> None:
    student, teacher = filled(1 / 3), EMATeacher(filled(1 / 7), momentum=1)
    teacher.update(student)
    assert_close(teacher.module.state_dict(), filled(1 / 7).state_dict(), rtol=0, atol=0)
    teacher.momentum = 0
    teacher.update(student)
    assert_close(teacher.module.state_dict(), student.state_dict(), rtol=0, atol=0)


def test_training_the_student_leaves_the_teacher() -> None:
    student = filled(0.5)
    teacher = EMATeacher(student)
    student(torch.randn(5, 3)).sum().backward()
    torch.optim.SGD(student.parameters(), lr=0.02).step()
    assert_close(teacher.module[2].weight, torch.full((2, 4), 0.5))
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher(torch.randn(5, 3, requires_grad=True)).requires_grad
    teacher.update(student)
    assert_close(teacher.module[2].bias, 0.99 * torch.full((2,), 0.5) + 0.01 * student[2].bias.detach())
    assert student[2].weight.requires_grad and student[2].weight.grad is not None


def test_the_teacher_keeps_its_own_statistics() -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher, x = EMATeacher(student.eval()), torch.randn(64, 3)  # the copy trains, whatever mode the student was in
    out = teacher(x)
    assert_close(out.mean(0), torch.zeros(4))
    assert_close(out.var(0, correction=0), torch.ones(4), rtol=1e-3, atol=0)
    assert_close(teacher.module[1].running_mean, 0.1 * student[0](x).detach().mean(0))
    assert (teacher.module[1].num_batches_tracked, student[1].num_batches_tracked) == (1, 0)
    before = copy.deepcopy(dict(teacher.named_buffers()))
    student[1].running_mean.fill_(7)
    teacher.update(student)
    assert_close(dict(teacher.named_buffers()), before, rtol=0, atol=0)


def test_a_layer_that_the_student_holds_in_evaluation_mode_is_held_by_the_teacher() -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    student[1].eval()
    teacher = EMATeacher(student)
    assert [m.training for m in teacher.module.modules()] == [m.training for m in student.modules()]
    assert teacher.training
    teacher(torch.randn(8, 3))
    assert [int(teacher.module[i].num_batches_tracked) for i in (1, 3)] == [0, 1]
    isd = ISD(student, queue_size=4)
    assert not isd.teacher.module[1].training and all(m.training for m in isd.train().teacher.modules())


@pytest.mark.parametrize("momentum", [1.5, -0.1, math.nan])
def test_a_momentum_lies_between_0_and_1(momentum: float) -> None:
    assert "must lie in [0, 1]" in refusal(EMATeacher, filled(1), momentum)
    teacher = EMATeacher(filled(1))
    teacher.momentum = momentum
    assert "must lie in [0, 1]" in refusal(teacher.update, filled(1))


@pytest.mark.parametrize("momentum", [(0.9, 1.5), (0.9, "1"), "0.9", None, (0.9, math.nan)])
def test_both_momenta_of_a_method_lie_between_0_and_1(momentum: Any) -> None:
    assert "is a number and must lie in [0, 1], not " in refusal(ISD, filled(1), queue_size=4, momentum=momentum)


@pytest.mark.parametrize("momentum", [(0.9, 0.95, 1), (0.9,), torch.ones(3)])
def test_a_method_has_one_momentum_or_two(momentum: Any) -> None:
    assert "one number in [0, 1], or two" in refusal(ISD, filled(1), queue_size=4, momentum=momentum)


@pytest.mark.parametrize("momentum", [np.float32(0.75), torch.tensor(0.75), [0.75, 0.75], np.full(2, 0.75)])
def test_momenta_of_numpy_and_torch_are_numbers(momentum: Any) -> None:
    isd = ISD(filled(1), queue_size=4, momentum=momentum)
    isd.schedule(0.5)
    assert isd.teacher.momentum == 0.75 and type(isd.teacher.momentum) is float


class Keeps(nn.Module):
    "A network that keeps what it computed last, or all of it."

    def __init__(self, everything: bool = False) -> None:
        super().__init__()
        self.net, self.kept = nn.utils.weight_norm(nn.Linear(3, 2)), [] if everything else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.net(x)
        self.kept = out if self.kept is None or isinstance(self.kept, torch.Tensor) else [*self.kept, out]
        return out


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_a_network_keeps_beside_its_parameters_is_copied_without_a_gradient() -> None:
    torch.manual_seed(0)
    student, x = Keeps(), torch.randn(5, 3)
    student(x)
    teacher = EMATeacher(student, momentum=0.5)
    assert not teacher.module.kept.requires_grad and student.kept.requires_grad
    assert_close(teacher(x), student(x).detach())
    with torch.no_grad():
        student.net.weight_g.mul_(3)
    teacher.update(student)
    assert_close(teacher(x) - teacher.module.net.bias, (student(x) - student.net.bias).detach() * 2 / 3)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_cannot_be_copied_is_named() -> None:
    lazy = nn.Sequential(nn.LazyLinear(2))
    assert "lazy layers have no weights (0.weight): run one batch" in refusal(EMATeacher, lazy)
    student = Keeps(everything=True)
    student(torch.randn(5, 3))
    assert "Keeps cannot be copied, since it keeps what it computed" in refusal(EMATeacher, student)
    student = filled(1)
    student.lock = threading.Lock()
    assert "keep no locks" in refusal(ISD, student, queue_size=4)


def inner_compiled(net: nn.Module) -> nn.Module:
    net[0] = torch.compile(net[0])
    return net


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, inner_compiled,
                                  lambda net: torch.compile(nn.DataParallel(net)),
                                  lambda net: nn.DataParallel(torch.compile(net))])
def test_a_wrapped_student_is_followed_and_copied(wrap: Any) -> None:
    teacher = EMATeacher(filled(0), momentum=0.75)
    teacher.update(wrap(filled(1)))
    of_wrapped = EMATeacher(wrap(filled(0)), momentum=0.75)
    of_wrapped.update(filled(1))
    for p in (*teacher.parameters(), *of_wrapped.parameters()):
        assert_close(p, torch.full_like(p, 0.25))


def test_parameters_of_whole_numbers_are_copied() -> None:
    def counting(value: int) -> nn.Module:
        net = nn.Linear(2, 2)
        net.bins = nn.Parameter(torch.full((3,), value), requires_grad=False)
        net.on = nn.Parameter(torch.tensor(value > 2), requires_grad=False)
        return net
    teacher, student = EMATeacher(counting(1), momentum=0.5), counting(4)
    before = teacher.module.weight.clone()
    teacher.update(student)
    assert teacher.module.bins.tolist() == [4, 4, 4] and bool(teacher.module.on)
    assert_close(teacher.module.weight, ((before + student.weight) / 2).detach())


def test_every_parameter_needs_its_partner() -> None:
    student = filled(1)
    without_bias = nn.Sequential(student[0], student[1], nn.Linear(4, 2, bias=False))
    sentence = refusal(EMATeacher(student).update, without_bias)
    assert "'2.bias' finds no partner (teacher: (2,), student: missing)" in sentence
    sentence = refusal(EMATeacher(student).update, nn.Sequential(nn.Linear(5, 4), student[1], student[2]))
    assert "'0.weight' finds no partner (teacher: (4, 3), student: (4, 5))" in sentence


def test_the_schedule_is_that_of_byol() -> None:
    for done in (0, 0.3, 0.5, 1):
        assert cosine_momentum(0.99, 1, done) == pytest.approx(1 - 0.01 * (math.cos(math.pi * done) + 1) / 2)
    assert "not 1.1" in refusal(cosine_momentum, 0.9, 1, 1.1)


@pytest.mark.parametrize(("name", "classes"), [("resnet10t", 0), ("mobilenetv3_small_050", 0), ("mobilevit_xxs", 0),
                                               ("resnet10t", 7)])
def test_isd_takes_a_network_of_timm(name: str, classes: int) -> None:
    "Its vectors are of `num_features`, or wider behind a head's own layers, or as many as classes."
    isd = ISD(timm.create_model(name, num_classes=classes), queue_size=4)
    images = torch.rand(2, 3, 64, 64)
    isd.update(isd(images, images))
    assert isd.queue.anchors.shape[1] == isd.student(images).shape[1]
    if not classes:
        encoder = Encoder(timm.create_model(name, num_classes=0), [0.5] * 3, [0.5] * 3)
        assert encoder(images).shape[1] == encoder.out_dim
