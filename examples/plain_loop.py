"""ISD in a plain loop around a network of timm: python examples/plain_loop.py [STEPS]"""
import sys

import timm
import torch
from torch.nn import Linear, Sequential, functional as F

from isd_nb import AnchorQueue, EMATeacher, Views, knn_accuracy, streaming_soft_label_loss
from isd_nb.recipe import find_recipe
from isd_nb.sources.digits import digits


def main(steps: int = 300, batch: int = 128, dim: int = 64) -> None:
    generator = torch.manual_seed(0)
    train, test = digits(size=16, copies=4)  # image sets: uint8 (N, 1, 16, 16)
    views = Views(find_recipe("digits").views, 16)
    backbone = timm.create_model("resnet10t", in_chans=1, num_classes=0)
    student = Sequential(backbone, Linear(backbone.num_features, dim))
    teacher, queue = EMATeacher(student, momentum=0.95), AnchorQueue(1024, dim)
    optimizer = torch.optim.SGD(student.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    for _ in range(steps):
        images = train.get(torch.randint(len(train), (batch,)))
        queries = F.normalize(student(views(images, generator)), dim=1)  # (B, D)
        with torch.no_grad():
            keys = F.normalize(teacher(views(images, generator)), dim=1)  # (B, D)
        loss = streaming_soft_label_loss(queries, keys, queue.anchors, 0.1, 0.04)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teacher.update(student)
        queue.enqueue(keys)  # after the comparison: a query's own key is never among its anchors
    with torch.no_grad():
        found = [backbone.eval()(s.images.float() / 255) for s in (train, test)]
    score = knn_accuracy(found[0], train.labels, found[1], test.labels)
    print(f"step {steps}: loss {loss.item():.3f}, 20-NN {score:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
