"""ISD with one part changed, and methods without a safeguard: what ablations.py and collapse.py train.

Each is a method by its long name, so that `isd_train --method variants:Prefilled` works where this folder is on the
path.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isd_nb.methods.byol import BYOLAsym
from isd_nb.method import shuffle_order
from isd_nb.kernels.bfloat16_attention import product_precision
from isd_nb.methods.moco_v2 import streaming_contrastive_loss
from isd_nb.methods.simclr import SimCLR
from isd_nb.methods.simsiam import SimSiam
from isd_nb.data import ImageSet
from isd_nb.encoders import BackboneConfig, Encoder, build_backbone, mlp
from isd_nb.isd import ISD
from isd_nb.method import Output
from isd_nb.kernels.attention import at_least_float32
from isd_nb.loss import streaming_soft_label_loss
from isd_nb.sources.batches import seeded


class Prefilled(ISD):
    "ISD whose queue holds keys of real images before the first step, where it else holds random directions."

    @classmethod
    def from_recipe(cls, student: Encoder, recipe: Any, images: ImageSet) -> "Prefilled":
        "Build, then let views of random training images through the teacher, a batch at a time."
        method = super().from_recipe(student, recipe, images).train()
        rows = torch.randint(len(images), (recipe.queue_size,), generator=seeded(recipe.seed, 100))
        for number, part in enumerate(rows.split(recipe.batch_size)):
            view = cls.views(recipe)[1](images.get(part), seeded(recipe.seed, 101, number))
            with torch.no_grad():
                method.queue.enqueue(method.call("teacher.module", view, {}))
        return method


class Shuffled(ISD):
    "ISD whose keys meet other images in batch norm than their queries do, as in MoCo and the authors' scripts."

    options: Mapping[str, Any] = {"splits": 4}

    @classmethod
    def from_recipe(cls, student: Encoder, recipe: Any, images: ImageSet) -> "Shuffled":
        "Build from a recipe; `splits` is the recipe's `batch_norm_splits`."
        predictor = mlp(student.out_dim, *recipe.predictor, student.out_dim) if recipe.predictor else None
        method = cls(
            student,
            predictor,
            recipe.queue_size,
            recipe.student_temperature,
            recipe.teacher_temperature,
            recipe.momentum,
        )
        method.splits = recipe.batch_norm_splits
        return method

    def compare(self, view_q: Tensor, view_k: Tensor, buffers: dict[str, Any]) -> tuple[Tensor, Tensor]:
        "Queries and keys, (B, D) each; the keys go through batch norm in another order."
        order = shuffle_order(len(view_k), self.splits, view_k.device)
        queries, keys = super().compare(view_q, view_k[order], buffers)
        return queries, keys[order.argsort()]


class OneHot(ISD):
    "MoCo's label in ISD: the own key is right, every anchor is wrong; heads, batch norm and queue are ISD's."

    def forward(self, view_q: Tensor, view_k: Tensor) -> Output:  # (B, C, H, W) each, float in [0, 1]
        "Compare; change nothing."
        queries, keys = self.compare_both(view_q, view_k, buffers := {})
        anchors, colder = self.queue.anchors, self.teacher_temperature < self.student_temperature
        products = product_precision(anchors, len(queries), colder)  # as ISD's own loss: only the label differs
        loss = streaming_contrastive_loss(queries, keys, anchors, self.student_temperature, products=products)
        return Output(loss, keys[: len(view_q)], buffers)


class Mixture(ISD):
    "A weighted mean of both losses: weight 0 is ISD, weight 1 is the one-hot label."

    options: Mapping[str, Any] = {"symmetric": False, "weight": 0.5}

    def __init__(self, *args: Any, weight: float = 0.5, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.weight = weight

    def forward(self, view_q: Tensor, view_k: Tensor) -> Output:  # (B, C, H, W) each, float in [0, 1]
        "Compare; change nothing."
        queries, keys = self.compare_both(view_q, view_k, buffers := {})
        anchors, student, teacher = self.queue.anchors, self.student_temperature, self.teacher_temperature
        products = product_precision(anchors, len(queries), teacher < student)
        hard = streaming_contrastive_loss(queries, keys, anchors, student, products=products)
        soft = streaming_soft_label_loss(queries, keys, anchors, student, teacher, products=products)
        return Output(self.weight * hard + (1 - self.weight) * soft, keys[: len(view_q)], buffers)


class ScaleOnly(nn.Module):
    "Batch norm's scale and shift without its normalisation; the names of its parameters are the same."

    def __init__(self, features: int, affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(features)) if affine else None

    def forward(self, x: Tensor) -> Tensor:  # (B, C) or (B, C, H, W)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return x if self.weight is None else x * self.weight.view(shape) + self.bias.view(shape)


def without_batch_norm(module: nn.Module) -> nn.Module:
    "Replace every batch norm below by its scale and shift."
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            setattr(module, name, ScaleOnly(child.num_features, affine=child.affine))
        else:
            without_batch_norm(child)
    return module


class NoNormInHeads(ISD):
    "ISD without batch norm in projector and predictor."

    @classmethod
    def from_recipe(cls, student: Encoder, recipe: Any, images: ImageSet) -> "NoNormInHeads":
        "Build from a recipe."
        without_batch_norm(student.projector)
        method = super().from_recipe(student, recipe, images)
        without_batch_norm(method.predictor)
        return method


def tiny_without_norm(channels: int, width: int = 16) -> nn.Module:
    "The five-layer net without any batch norm: with `NoNormInHeads`, ISD without any."
    return without_batch_norm(build_backbone(BackboneConfig("tiny", channels, width)))


class BothLearn(ISD):
    "ISD without a stop of the gradient: the keys are the student's own, and the gradient flows through the label, too."

    def compare(self, view_q: Tensor, view_k: Tensor, buffers: dict[str, Any]) -> tuple[Tensor, Tensor]:
        "Queries and keys of the student, (B, D) each."
        queries = self.call("predictor", self.call("student", view_q, buffers), buffers)
        keys = self.call("student", view_k, buffers)
        return F.normalize(at_least_float32(queries), dim=1), F.normalize(at_least_float32(keys), dim=1)

    def forward(self, view_q: Tensor, view_k: Tensor) -> Output:  # (B, C, H, W) each, float in [0, 1]
        "Compare; change nothing."
        queries, keys = self.compare(view_q, view_k, buffers := {})
        labels = (keys @ self.queue.anchors.T / self.teacher_temperature).log_softmax(dim=1)  # (B, K)
        guesses = (queries @ self.queue.anchors.T / self.student_temperature).log_softmax(dim=1)  # (B, K)
        loss = (labels.exp() * (labels - guesses)).sum(dim=1).mean()
        return Output(loss, keys.detach(), buffers)


class PlainSimSiam(SimSiam):
    "SimSiam without a predictor."

    @classmethod
    def from_recipe(cls, student: Encoder, recipe: Any, images: ImageSet) -> "PlainSimSiam":
        "Build from a recipe, whose predictor is not used."
        method = super().from_recipe(student, recipe, images)
        method.predictor = nn.Identity()
        return method


class OpenSimSiam(SimSiam):
    "SimSiam without a stop of the gradient."

    def forward(self, view_q: Tensor, view_k: Tensor) -> Output:  # (B, C, H, W) each, float in [0, 1]
        "Compare; change nothing."
        buffers: dict[str, Any] = {}
        projections = [self.call("student", view, buffers) for view in (view_q, view_k)]
        queries = [self.call("predictor", z, buffers) for z in projections]
        pairs = ((queries[0], projections[1]), (queries[1], projections[0]))
        alike = [F.cosine_similarity(at_least_float32(q), at_least_float32(z), dim=1).mean() for q, z in pairs]
        return Output(-sum(alike) / 2, None, buffers)


class PlainBYOL(BYOLAsym):
    "BYOL in one direction without a predictor."

    @classmethod
    def from_recipe(cls, student: Encoder, recipe: Any, images: ImageSet) -> "PlainBYOL":
        "Build from a recipe, whose predictor is not used."
        return cls(student, None, recipe.momentum)


class OneGradient(SimCLR):
    "SimCLR whose gradient flows into the queries alone; both views are queries once."

    def forward(self, view_q: Tensor, view_k: Tensor) -> Output:  # (B, C, H, W) each, float in [0, 1]
        "Compare; change nothing."
        buffers: dict[str, Any] = {}
        views = torch.cat([self.call("student", view, buffers) for view in (view_q, view_k)])
        vectors = F.normalize(at_least_float32(views), dim=1)  # (2B, D)
        logits = (vectors @ vectors.detach().T / self.temperature).fill_diagonal_(-torch.inf)
        return Output(F.cross_entropy(logits, torch.arange(len(vectors)).roll(len(view_q))), None, buffers)


class InBatch(ISD):
    "Queries are compared with the keys of their own batch; the right one is that of the same image. No queue."

    def forward(self, view_q: Tensor, view_k: Tensor) -> Output:  # (B, C, H, W) each, float in [0, 1]
        "Compare; change nothing."
        queries, keys = self.compare_both(view_q, view_k, buffers := {})
        logits = queries @ keys.T / self.student_temperature  # (B, B)
        return Output(F.cross_entropy(logits, torch.arange(len(queries))), keys, buffers)


class InBatchOwnKeys(InBatch, BothLearn):
    "The same with keys of the student itself, without a gradient."

    def compare(self, view_q: Tensor, view_k: Tensor, buffers: dict[str, Any]) -> tuple[Tensor, Tensor]:
        "Queries and keys of the student, (B, D) each; the gradient stops at the keys."
        queries, keys = super().compare(view_q, view_k, buffers)
        return queries, keys.detach()
