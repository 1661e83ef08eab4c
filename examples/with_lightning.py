"""ISD's parts in Lightning, on one device: python examples/with_lightning.py [STEPS]   (extra: lightning)"""
import sys

import timm
import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.nn import Linear, Sequential, functional as F
from torch.utils.data import DataLoader

from isd_nb import AnchorQueue, EMATeacher, Views, streaming_soft_label_loss
from isd_nb.recipe import find_recipe
from isd_nb.sources.digits import digits


class Distilled(LightningModule):
    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        backbone = timm.create_model("resnet10t", in_chans=1, num_classes=0)
        self.student, self.queue = Sequential(backbone, Linear(backbone.num_features, dim)), AnchorQueue(1024, dim)
        self.teacher, self.views = EMATeacher(self.student, momentum=0.95), Views(find_recipe("digits").views, 16)

    def training_step(self, images: Tensor) -> Tensor:  # uint8 (B, C, H, W)
        queries = F.normalize(self.student(self.views(images, torch.default_generator)), dim=1)  # (B, D)
        with torch.no_grad():
            self.keys = F.normalize(self.teacher(self.views(images, torch.default_generator)), dim=1)  # (B, D)
        return streaming_soft_label_loss(queries, self.keys, self.queue.anchors, 0.1, 0.04)

    def on_train_batch_end(self, outputs: dict[str, Tensor], *_: object) -> None:  # after the optimiser's step
        self.teacher.update(self.student)
        self.queue.enqueue(self.keys)
        self.log("loss", outputs["loss"], prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)


if __name__ == "__main__":
    torch.manual_seed(0)
    batches = DataLoader(digits(size=16, copies=4)[0].images, batch_size=128, shuffle=True, drop_last=True)
    trainer = Trainer(max_steps=int([*sys.argv, 300][1]), logger=False, enable_checkpointing=False)
    trainer.fit(Distilled(), batches)
    print(f"step {trainer.global_step}: loss {trainer.callback_metrics['loss']:.3f}")
