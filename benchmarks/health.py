"""How well features are spread: effective rank, spread, alignment, uniformity, and the entropy of soft labels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isd_nb.data import ImageSet, subsample_evenly
from isd_nb.encoders import Encoder
from isd_nb.embedding import embed
from isd_nb.evaluation import knn_accuracy
from isd_nb.isd import ISD
from isd_nb.method import Method
from isd_nb.loss import soft_labels
from isd_nb.recipe import Recipe
from isd_nb.sources.batches import seeded


def entropy(shares: Tensor) -> Tensor:  # (..., N) -> (...)
    "In nats."
    return -(shares * shares.clamp_min(1e-30).log()).sum(-1)


def rank_me(features: Tensor) -> float:  # of (N, F), between 1 and F
    "Effective rank: exponential of the entropy of normalised singular values (RankMe, Garrido et al. 2023)."
    values = torch.linalg.svdvals(features.double())
    return float(entropy(values / values.sum().clamp_min(1e-30)).exp())


def spread(features: Tensor) -> float:  # of (N, F); 0 when all images have the same direction, at most 1
    "Mean standard deviation of unit features, times the root of their number (SimSiam, Chen and He 2021, section 4)."
    unit = F.normalize(features, dim=1)
    return float(unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5)


def alignment(first: Tensor, second: Tensor) -> float:  # (N, F) twice; 0 when both views have the same direction
    "Mean squared distance of the unit features of two views of an image (Wang and Isola 2020)."
    return float((F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(1).mean())


def uniformity(
    features: Tensor,
) -> float:  # of (N, F); 0 when all images have the same direction, lower is more uniform
    "Logarithm of the mean of exp(-2 squared distance) over pairs of unit features (Wang and Isola 2020)."
    return float(torch.pdist(F.normalize(features, dim=1)).square().mul(-2).exp().mean().log())


@torch.no_grad()
def label_entropy(method: ISD, views: Tensor) -> float:  # in nats, between 0 and log K
    "Mean entropy of the soft labels of a batch of views, computed as in training: with batch norm of the batch."
    was = method.training
    method.train()
    keys = F.normalize(method.call("teacher.module", views, {}).float(), dim=1)
    method.train(was)
    return float(entropy(soft_labels(keys, method.queue.anchors, method.teacher_temperature)).mean())


def health(
    recipe: Recipe,
    train_set: ImageSet,
    test_set: ImageSet,
    images: int = 1000,
    bank: int = 2000,
) -> Callable[[Method], dict[str, float]]:
    "What `train` calls at an evaluation: 20-NN of `test_set` and the measures of this page, of every encoder."
    bank_set, some = subsample_evenly(train_set, bank), subsample_evenly(test_set, images)

    def measure(method: Method) -> dict[str, float]:
        views = [make(some.images, seeded(recipe.seed, 7, i)) for i, make in enumerate(method.views(recipe))][:2]
        found = {}
        for name, encoder in method.encoders().items():
            features, both = embed(encoder, some), [embed(encoder, (255 * v).round().to(torch.uint8)) for v in views]
            found |= {
                f"knn20_{name}": knn_accuracy(embed(encoder, bank_set), bank_set.labels, features, some.labels),
                f"rankme_{name}": rank_me(features),
                f"spread_{name}": spread(features),
                f"alignment_{name}": alignment(*both) if len(both) == 2 else 0.0,
                f"uniformity_{name}": uniformity(features),
            }
            found |= projections(encoder, some, name)
        if isinstance(method, ISD):
            found["label_entropy"] = label_entropy(method, views[1][:256])
        return found

    return measure


class Projected(nn.Module):
    "An encoder whose projections are embedded in place of its features."

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B, D)
        return self.encoder(images)


def projections(encoder: Encoder, images: ImageSet, name: str) -> dict[str, float]:
    "Effective rank and spread of what the projector makes of the features: the vectors that the loss compares."
    vectors = embed(Projected(encoder), images)
    return {f"rankme_projected_{name}": rank_me(vectors), f"spread_projected_{name}": spread(vectors)}
