"""ISD and MoCo v2 as an expert would write them with public parts only: the peer that `race.py` and `step.py` measure.

`python benchmarks/tuned.py` measures what each of its choices is worth.

Only torch is used; nothing of isd_nb's kernels, losses, queues or loops. The network is given, so that all contestants
train the same one. What is tuned:

* views of the whole batch as tensors: one affine grid for crop, mirror image and rotation, one matrix for brightness,
  contrast, saturation and hue (the linear colour twist of DALI), a depthwise convolution for the blurred images;
* `channels_last`, autocast to bfloat16, the full batch-by-queue matrix as one bfloat16 product;
* SGD with `fused=True`, the moving average by one `torch._foreach_lerp_`, the queue kept in bfloat16 and in place.

Attempts to make it faster still, each a setting of `Tuning` that this command compares, are in `ATTEMPTS`.
"""
from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isd_nb.views import ViewRecipe

GREY = torch.tensor([0.299, 0.587, 0.114])
TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])


@dataclass(frozen=True)
class Tuning:
    """The choices that an expert would try."""
    bfloat16: bool = True  # autocast
    fused: bool = True  # SGD in one kernel, else foreach
    compile: bool = False  # student and teacher by torch.compile
    compile_views: bool = False  # the views by torch.compile
    one_draw: bool = False  # both views of a batch in one call


DEFAULT = Tuning()
ATTEMPTS = {"as it is": Tuning(), "float32": Tuning(bfloat16=False), "foreach SGD": Tuning(fused=False),
            "compiled networks": Tuning(compile=True), "compiled views": Tuning(compile_views=True),
            "both views in one call": Tuning(one_draw=True)}


class TunedViews:
    """Random views of a batch, each image with its own numbers, by few large operations."""

    def __init__(self, recipe: ViewRecipe, size: int, mean: Tensor, std: Tensor) -> None:  # mean, std (C, 1, 1)
        self.recipe, self.size, self.mean, self.std = recipe, size, mean, std

    def affine(self, n: int) -> Tensor:  # (n, 2, 3), from view to image coordinates in [-1, 1]
        recipe = self.recipe
        area = torch.empty(n).uniform_(*recipe.crop_scale)
        ratio = torch.empty(n).uniform_(math.log(recipe.crop_ratio[0]), math.log(recipe.crop_ratio[1])).exp()
        longest = max(1.0, recipe.crop_scale[1] ** 0.5)
        wide, high = (area * ratio).sqrt().clamp(max=longest), (area / ratio).sqrt().clamp(max=longest)
        x, y = ((2 * torch.rand(n) - 1) * (1 - side).abs() for side in (wide, high))
        mirror = 1 - 2 * (torch.rand(n) < recipe.flip).float()
        angle = torch.empty(n).uniform_(-recipe.rotation, recipe.rotation).deg2rad()
        sine, cosine = angle.sin(), angle.cos()
        rows = [wide * mirror * cosine, -wide * mirror * sine, x, high * sine, high * cosine, y]
        return torch.stack(rows, 1).view(n, 2, 3)

    def colours(self, n: int, channels: int) -> tuple[Tensor, Tensor]:
        """A matrix (n, C, C), and the weight of the image's mean grey (n,)."""
        recipe = self.recipe
        on = (torch.rand(n) < recipe.jitter).float()

        def factor(strength: float) -> Tensor:
            return 1 + on * torch.empty(n).uniform_(-min(strength, 1.0), strength)
        bright, contrast = factor(recipe.brightness), factor(recipe.contrast)
        matrix = torch.eye(channels).expand(n, -1, -1)
        if channels == 3:
            grey = GREY.expand(3, 3)
            saturation = factor(recipe.saturation) * (torch.rand(n) >= recipe.grey)
            if recipe.hue:
                angle = on * 2 * math.pi * torch.empty(n).uniform_(-recipe.hue, recipe.hue)
                turn = torch.zeros(n, 3, 3)
                turn[:, 0, 0] = 1
                turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
                turn[:, 2, 1] = angle.sin()
                turn[:, 1, 2] = -turn[:, 2, 1]
                matrix = torch.linalg.inv(TO_YIQ) @ turn @ TO_YIQ
            matrix = grey + saturation[:, None, None] * (matrix - grey)
        return matrix * (bright * contrast)[:, None, None], bright * (1 - contrast)

    def blur(self, x: Tensor) -> Tensor:  # (n, C, S, S)
        n, channels = x.shape[:2]
        reach = max(1, self.size // 20)
        taps = torch.arange(-reach, reach + 1)
        kernel = (-0.5 * (taps / torch.empty(n, 1).uniform_(*self.recipe.blur_sigma)).square()).exp()
        kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]  # (n C, 1, T)
        flat = F.pad(x.reshape(1, n * channels, *x.shape[2:]), [reach] * 4, mode="reflect")
        flat = F.conv2d(F.conv2d(flat, kernel[..., None], groups=n * channels), kernel[:, :, None], groups=n * channels)
        return flat.view_as(x)

    def __call__(self, images: Tensor) -> Tensor:  # uint8 (B, C, H, W) -> normalised (B, C, S, S), channels_last
        n, channels = images.shape[:2]
        grid = F.affine_grid(self.affine(n), [n, channels, self.size, self.size], align_corners=False)
        x = F.grid_sample(images.float().div_(255), grid, align_corners=False)
        matrix, weight = self.colours(n, channels)
        mean = x.mean((2, 3))  # (n, C)
        grey = weight * (mean @ GREY if channels == 3 else mean[:, 0])  # (n,)
        x = torch.baddbmm(grey[:, None, None], matrix, x.flatten(2)).clamp_(0, 1).view_as(x)
        if self.recipe.blur:
            on = torch.rand(n) < self.recipe.blur
            x[on] = self.blur(x[on])
        return x.sub_(self.mean).div_(self.std).contiguous(memory_format=torch.channels_last)


class TunedStep:
    """Student, teacher, queue and optimiser of ISD or MoCo v2, and one training step of them."""

    def __init__(self, encoder: nn.Module,  # backbone and projector: normalised views (B, C, S, S) -> (B, D)
                 predictor: nn.Module,  # (B, D) -> (B, D); `nn.Identity()` for none
                 dim: int, anchors: int, method: str = "isd",  # or "moco_v2"
                 temperatures: tuple[float, float] = (0.1, 0.04),  # student's and teacher's
                 shuffle: bool = False,  # the keys, where batch norm treats parts of the batch separately
                 tuning: Tuning = DEFAULT) -> None:
        self.student = encoder.to(memory_format=torch.channels_last).train()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.predictor, self.method, self.temperatures, self.shuffle = predictor.train(), method, temperatures, shuffle
        self.momentum, self.dtype = 0.99, torch.bfloat16 if tuning.bfloat16 else torch.float32
        self.bank, self.place = F.normalize(torch.randn(anchors, dim), dim=1).to(self.dtype), 0
        learns = [*self.student.parameters(), *self.predictor.parameters()]
        groups = [dict(params=[p for p in learns if p.ndim > 1], weight_decay=1e-4),
                  dict(params=[p for p in learns if p.ndim <= 1], weight_decay=0.0)]
        kind = dict(fused=True) if tuning.fused else dict(foreach=True)
        self.optimizer = torch.optim.SGD(groups, 0.06, momentum=0.9, nesterov=True, **kind)
        self.mine, self.theirs = list(self.teacher.parameters()), list(self.student.parameters())
        self.run_student, self.run_teacher = self.student, self.teacher
        if tuning.compile:
            self.run_student, self.run_teacher = torch.compile(self.student), torch.compile(self.teacher)

    def keys(self, view: Tensor) -> Tensor:  # (B, D) of norm 1
        if not self.shuffle:
            return F.normalize(self.run_teacher(view).float(), dim=1)
        order = torch.randperm(len(view))
        keys = self.run_teacher(view[order].contiguous(memory_format=torch.channels_last))
        return F.normalize(keys.float(), dim=1)[order.argsort()]

    def loss(self, queries: Tensor, keys: Tensor) -> Tensor:
        logits = queries.to(self.dtype) @ self.bank.T
        if self.method == "moco_v2":
            positive = (queries * keys).sum(1, keepdim=True)
            logits = torch.cat([positive, logits.float()], 1) / self.temperatures[0]
            return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
        with torch.no_grad():
            labels = ((keys.to(self.dtype) @ self.bank.T).float() / self.temperatures[1]).softmax(1)
            entropy = torch.special.entr(labels).sum()
        cross = -(labels * (logits.float() / self.temperatures[0]).log_softmax(1)).sum()
        return (cross - entropy) / len(queries)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        places = torch.arange(self.place, self.place + len(keys)).remainder_(len(self.bank))
        self.bank[places] = keys.to(self.dtype)
        self.place = (self.place + len(keys)) % len(self.bank)

    def __call__(self, view_q: Tensor, view_k: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            with torch.no_grad():
                keys = self.keys(view_k)
            output = self.predictor(self.run_student(view_q))
        queries = F.normalize(output.float(), dim=1)
        loss = self.loss(queries, keys)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        torch._foreach_lerp_(self.mine, self.theirs, 1 - self.momentum)
        self.enqueue(keys)
        return loss.detach()


class TunedTraining:
    """Views and a step, on images that are in memory."""

    def __init__(self, step: TunedStep, images: Tensor, views: tuple[TunedViews, TunedViews], batch: int,
                 tuning: Tuning = DEFAULT) -> None:
        self.step, self.images, self.batch, self.tuning = step, images, batch, tuning
        self.make = tuple(torch.compile(v) if tuning.compile_views else v for v in views)
        self.order = torch.randperm(0)

    def indices(self) -> Tensor:  # (B,), without replacement in an epoch
        if len(self.order) < self.batch:
            self.order = torch.randperm(len(self.images))
        chosen, self.order = self.order[:self.batch], self.order[self.batch:]
        return chosen

    def __call__(self) -> Tensor:
        images = self.images[self.indices()]
        if self.tuning.one_draw:
            both = self.make[0](torch.cat([images, images]))
            return self.step(*(v.contiguous(memory_format=torch.channels_last) for v in both.chunk(2)))
        return self.step(self.make[0](images), self.make[1](images))
