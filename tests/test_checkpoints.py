"""Checkpoints of others, made in the layouts that their sources write, give the features of the network they came from.

Each case cites the repository and the file whose lines decide the keys; the networks are small but for their depth.
"""

import argparse
import contextlib
import copy
import os
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close
from torchvision import models

from isd_nb.encoders import check_kind, load_encoder, save_encoder
from isd_nb.errors import InputError, refusal
from isd_nb.data import ImageSet
from isd_nb.methods.building import build_method
from isd_nb.methods.checkpoints import fit_recipe, open_encoder, read_checkpoint, source_line
from isd_nb.methods.choosing import choose_recipe
from isd_nb.protocols.storage import save_checkpoint

States = dict[str, torch.Tensor]


def prefixed(prefix: str, net: nn.Module) -> States:
    return {f"{prefix}{k}": v for k, v in net.state_dict().items()}


def lively(net: nn.Module, seed: int) -> nn.Module:
    "Random statistics and weights everywhere, so that no tensor can be left out without a trace."
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator) * 0.1
            value.data = value.data + noise if not name.endswith("running_var") else 1 + noise
    return net.eval()


def headless(net: nn.Module) -> nn.Module:
    "The same layers, without the last; copies of ten million weights would take longer than all that is done to them."
    net = copy.copy(net)
    net._modules = {**net._modules, "fc": nn.Identity()}
    return net


def mlp(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(i, o) for i, o in zip(sizes, sizes[1:])))


class Settings(dict):
    "Stands for Lightning's AttributeDict: a dictionary of a class that is not known."


@cache
def resnet() -> nn.Module:
    return lively(models.resnet18(), 0)


@cache
def other() -> nn.Module:
    return lively(models.resnet18(), 1)


@cache
def cifar() -> nn.Module:
    net = lively(models.resnet18(), 2)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 2, bias=False), nn.Identity()  # solo-learn: padding=2
    return net


@cache
def vit() -> nn.Module:
    return lively(timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64, num_classes=0), 3)


def isd() -> Any:
    # UMBCvision/ISD, train_isd.py: encoder_q, encoder_k and predict_q are DataParallel, fc is empty;
    # saved with opt and optimizer
    state = {
        **prefixed("encoder_q.module.", headless(other())),
        **prefixed("encoder_k.module.", headless(resnet())),
        **prefixed("predict_q.module.", mlp(512, 8, 512)),
        "queue": torch.rand(16, 512),
        "queue_ptr": torch.zeros(1).long(),
    }
    return {"opt": argparse.Namespace(arch="resnet18"), "state_dict": state, "optimizer": {"state": {}}, "epoch": 3}


def byol() -> Any:
    # UMBCvision/ISD, train_byol.py: the same, with an MLP in fc and without a queue
    student, teacher = headless(other()), headless(resnet())
    student.fc, teacher.fc = mlp(512, 8, 4), mlp(512, 8, 4)
    state = {
        **prefixed("encoder_q.module.", student),
        **prefixed("encoder_k.module.", teacher),
        **prefixed("predict_q.module.", mlp(4, 8, 4)),
    }
    return {"opt": argparse.Namespace(arch="resnet18"), "state_dict": state, "optimizer": {}, "epoch": 3}


def mean_shift() -> Any:
    # UMBCvision/MSF, train_msf.py: encoder_t is the target
    student, teacher = headless(other()), headless(resnet())
    student.fc, teacher.fc = mlp(512, 8, 4), mlp(512, 8, 4)
    state = {
        **prefixed("encoder_q.module.", student),
        **prefixed("encoder_t.module.", teacher),
        **prefixed("predict_q.module.", mlp(4, 8, 4)),
        "queue": torch.rand(16, 4),
        "queue_ptr": torch.zeros(1).long(),
    }
    return {"opt": argparse.Namespace(arch="resnet18"), "state_dict": state, "optimizer": {}, "epoch": 3}


def compress() -> Any:
    # UMBCvision/CompRess, train_student.py: model is student.state_dict() of a DataParallel with an empty fc
    return {
        "opt": argparse.Namespace(student_arch="resnet18"),
        "model": prefixed("module.", headless(resnet())),
        "optimizer": {},
        "epoch": 3,
    }


def moco_v1() -> Any:
    # facebookresearch/moco, moco/builder.py: fc is one linear layer; main_moco.py saves the state_dict of
    # DistributedDataParallel
    state = {
        **prefixed("module.encoder_q.", other()),
        **prefixed("module.encoder_k.", resnet()),
        "module.queue": torch.rand(8, 16),
        "module.queue_ptr": torch.zeros(1).long(),
    }
    return {"epoch": 3, "arch": "resnet18", "state_dict": state, "optimizer": {}}


def moco_v2() -> Any:
    # facebookresearch/moco, moco/builder.py with mlp=True: fc is Sequential(Linear, ReLU, Linear)
    student, teacher = headless(other()), headless(resnet())
    student.fc = teacher.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    state = {
        **prefixed("module.encoder_q.", student),
        **prefixed("module.encoder_k.", teacher),
        "module.queue": torch.rand(128, 16),
        "module.queue_ptr": torch.zeros(1).long(),
    }
    return {"epoch": 3, "arch": "resnet18", "state_dict": state, "optimizer": {}}


def moco_unwrapped() -> Any:
    # the same of a trainer that saves the model itself, without DistributedDataParallel
    state = {k.removeprefix("module."): v for k, v in moco_v2()["state_dict"].items()}
    return {"epoch": 3, "model": state}


def teacher_alone() -> Any:
    # {name: model.state_dict()}, as many trainers of one's own save both networks
    return {"student": headless(other()).state_dict(), "teacher": headless(resnet()).state_dict()}


def tutorial() -> Any:
    # pytorch.org, Saving and Loading Models: a general checkpoint
    return {"epoch": 5, "model_state_dict": resnet().state_dict(), "optimizer_state_dict": {}, "loss": 0.1}


def simsiam() -> Any:
    # facebookresearch/simsiam, simsiam/builder.py: encoder with fc of eight layers, predictor
    net = headless(resnet())
    net.fc = nn.Sequential(
        nn.Linear(512, 512, bias=False),
        nn.BatchNorm1d(512),
        nn.ReLU(),
        nn.Linear(512, 64),
        nn.BatchNorm1d(64, affine=False),
    )
    state = {**prefixed("module.encoder.", net), **prefixed("module.predictor.", mlp(64, 8, 64))}
    return {"epoch": 3, "arch": "resnet18", "state_dict": state, "optimizer": {}}


def swav() -> Any:
    # facebookresearch/swav, src/resnet50.py: projection_head and prototypes beside the layers, no fc;
    # main_swav.py saves DDP's state_dict
    state = {
        **prefixed("module.", headless(resnet())),
        **prefixed("module.projection_head.", mlp(512, 8, 4)),
        **prefixed("module.prototypes.", mlp(4, 30)),
    }
    return {"epoch": 3, "state_dict": state, "optimizer": {}}


def swav_published() -> Any:
    # facebookresearch/swav, hubconf.py: the published file is the state dict itself, with module. before each key
    return swav()["state_dict"]


def dino() -> Any:
    # facebookresearch/dino, main_dino.py and utils.py (MultiCropWrapper): the student is wrapped by DDP, the teacher
    # is not where it has no batch norm
    student = lively(timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64, num_classes=0), 4)
    return {
        "student": prefixed("module.backbone.", student) | prefixed("module.head.mlp.", mlp(192, 8)),
        "teacher": prefixed("backbone.", vit()) | prefixed("head.mlp.", mlp(192, 8)),
        "optimizer": {},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_tiny"),
        "dino_loss": {"center": torch.zeros(1, 8)},
    }


def dino_published() -> Any:
    # facebookresearch/dino, utils.py (load_pretrained_weights): the backbone's own names, vision_transformer.py
    return vit().state_dict()


def barlow_twins() -> Any:
    # facebookresearch/barlowtwins, main.py: model is DDP's state_dict of backbone, projector and bn
    bn = nn.BatchNorm1d(8, affine=False)
    state = {
        **prefixed("module.backbone.", headless(resnet())),
        **prefixed("module.projector.", mlp(512, 8, 8)),
        **prefixed("module.bn.", bn),
    }
    return {"epoch": 3, "model": state, "optimizer": {}}


def lightly_example() -> Any:
    # lightly-ai/lightly, examples/pytorch_lightning/moco.py: backbone = nn.Sequential(*list(resnet.children())[:-1])
    student, teacher = (nn.Sequential(*list(net.children())[:-1]) for net in (other(), resnet()))
    state = {
        **prefixed("backbone.", student),
        **prefixed("backbone_momentum.", teacher),
        **prefixed("projection_head.layers.", mlp(512, 8)),
        **prefixed("projection_head_momentum.layers.", mlp(512, 8)),
        "criterion.memory_bank.bank": torch.rand(8, 16),
    }
    return {
        "state_dict": state,
        "epoch": 3,
        "pytorch-lightning_version": "2.0.0",
        "hyper_parameters": Settings(lr=1.0),
        "callbacks": {},
    }


def lightly_benchmark() -> Any:
    # lightly-ai/lightly, benchmarks/imagenet/resnet50/byol.py: backbone and teacher_backbone with fc = Identity
    state = {
        **prefixed("backbone.", headless(other())),
        **prefixed("teacher_backbone.", headless(resnet())),
        **prefixed("projection_head.layers.", mlp(512, 8)),
        **prefixed("prediction_head.layers.", mlp(8, 8)),
        **prefixed("teacher_projection_head.layers.", mlp(512, 8)),
        **prefixed("online_classifier.linear.", mlp(512, 10)),
    }
    return {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.0.0"}


def solo_learn() -> Any:
    # vturrisi/solo-learn, solo/methods/base.py (CIFAR: conv1 of 3 x 3 with padding=2) and mocov2plus.py
    state = {
        **prefixed("backbone.", headless(lively(copy.deepcopy(cifar()), 5))),
        **prefixed("momentum_backbone.", headless(cifar())),
        **prefixed("classifier.", nn.Linear(512, 10)),
        **prefixed("momentum_classifier.", nn.Linear(512, 10)),
        **prefixed("projector.", mlp(512, 8, 8)),
        **prefixed("momentum_projector.", mlp(512, 8, 8)),
        "queue": torch.rand(2, 8, 16),
        "queue_ptr": torch.zeros(1).long(),
    }
    return {
        "state_dict": state,
        "epoch": 3,
        "pytorch-lightning_version": "1.6.4",
        "hyper_parameters": Settings(method="mocov2plus"),
    }


def solo_learn_first() -> Any:
    # vturrisi/solo-learn, main_linear.py renames `encoder` to `backbone`: its first versions had that name
    state = {
        **prefixed("encoder.", headless(resnet())),
        **prefixed("classifier.", nn.Linear(512, 10)),
        **prefixed("projector.", mlp(512, 8, 8)),
    }
    return {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "1.4.0"}


def torchvision_weights() -> Any:
    return resnet().state_dict()  # pytorch/vision, torchvision/models/resnet.py, run here


def data_parallel() -> Any:
    return {"state_dict": nn.DataParallel(resnet()).state_dict(), "epoch": 3}


def timm_weights() -> Any:
    net = timm.create_model("resnet18", num_classes=10)  # huggingface/pytorch-image-models, run here
    net.load_state_dict(headless(resnet()).state_dict(), strict=False)
    return net.state_dict()


def vicreg() -> Any:
    # facebookresearch/vicreg, main_vicreg.py: model is the state_dict of DistributedDataParallel
    return {
        "epoch": 3,
        "model": prefixed("module.backbone.", headless(resnet())) | prefixed("module.projector.", mlp(512, 8, 8)),
    }


def averaged() -> Any:
    # pytorch, torch/optim/swa_utils.py (AveragedModel): n_averaged beside the network under module.
    return torch.optim.swa_utils.AveragedModel(resnet()).state_dict()


def lightning_of_ones_own() -> Any:
    # Lightning-AI/pytorch-lightning, a module's state_dict; self.model = torch.compile(net) keeps it under _orig_mod
    state = prefixed("model._orig_mod.", resnet()) | {"criterion.weight": torch.ones(3)}
    settings = argparse.Namespace(lr=1.0)
    return {"state_dict": state, "hyper_parameters": settings, "pytorch-lightning_version": "2.1.0"}


def fsdp() -> Any:
    # pytorch, torch/distributed/fsdp
    inside = "_fsdp_wrapped_module."
    state = {k.replace("layer1.", f"layer1.{inside}"): v for k, v in resnet().state_dict().items()}
    return {"model": {f"module.{inside}{k}": v for k, v in state.items()}}


def timm_training() -> Any:
    # huggingface/pytorch-image-models, timm/utils/checkpoint_saver.py: state_dict and state_dict_ema
    return {
        "state_dict": other().state_dict(),
        "state_dict_ema": resnet().state_dict(),
        "arch": "resnet18",
        "args": argparse.Namespace(lr=1),
    }


def mae() -> Any:
    # facebookresearch/mae, util/misc.py and models_mae.py: encoder, mask_token and decoder in one state_dict
    decoder = {"mask_token": torch.rand(1, 1, 8), "decoder_pos_embed": torch.rand(1, 17, 8)}
    return {
        "model": vit().state_dict() | decoder | prefixed("decoder_embed.", mlp(192, 8)),
        "args": argparse.Namespace(),
        "epoch": 3,
    }


def ibot() -> Any:
    # bytedance/ibot, main_ibot.py; models/vision_transformer.py: the student has masked_embed
    student = prefixed("module.backbone.", vit()) | {"module.backbone.masked_embed": torch.zeros(1, 192)}
    teacher = prefixed("backbone.", vit()) | prefixed("head.mlp.", mlp(192, 8))
    return {
        "student": student,
        "teacher": teacher,
        "args": argparse.Namespace(),
        "ibot_loss": {"center2": torch.zeros(1, 1, 8)},
    }


LAYOUTS: dict[Callable[[], Any], Callable[[], nn.Module]] = dict.fromkeys(
    (
        isd,
        byol,
        mean_shift,
        compress,
        moco_v1,
        moco_v2,
        moco_unwrapped,
        teacher_alone,
        tutorial,
        simsiam,
        swav,
        swav_published,
        barlow_twins,
        lightly_example,
        lightly_benchmark,
        solo_learn_first,
        torchvision_weights,
        data_parallel,
        timm_weights,
        vicreg,
        averaged,
        lightning_of_ones_own,
        fsdp,
        timm_training,
    ),
    resnet,
) | dict.fromkeys((dino, dino_published, mae, ibot), vit)
LAYOUTS[solo_learn] = cifar
FILES = {make.__name__: (make, net) for make, net in LAYOUTS.items()}


TWO = ["isd", "mean_shift", "moco_v2", "moco_unwrapped", "teacher_alone", "dino", "lightly_example", "solo_learn"]


@pytest.mark.parametrize("name", FILES)
def test_a_layout_gives_the_features_of_its_network(name: str, tmp_path: Path) -> None:
    make, net = FILES[name][0], FILES[name][1]()
    torch.save(make(), tmp_path / "weights.pth")
    encoder = load_encoder(tmp_path / "weights.pth")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = net if hasattr(net, "patch_embed") else headless(net).eval()
    if name in TWO:  # the student is another one
        student = load_encoder(tmp_path / "weights.pth", "student")
        assert not torch.allclose(encoder(images), student(images), atol=1e-3)
        assert (encoder.metadata["encoders"], student.metadata["encoders"]) == (["teacher"], ["student"])
    with torch.no_grad():
        assert_close(encoder(images), whole((images - encoder.mean) / encoder.std).float(), atol=1e-5, rtol=1e-5)


def test_safetensors_and_the_old_file_format(tmp_path: Path) -> None:
    save_file({k: v.contiguous() for k, v in resnet().state_dict().items()}, tmp_path / "weights.safetensors")
    torch.save(isd(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    images = torch.rand(2, 3, 32, 32)
    assert_close(load_encoder(tmp_path / "weights.safetensors")(images), load_encoder(tmp_path / "old.pth")(images))


def test_what_was_read_is_saved_and_loaded_as_ours(tmp_path: Path) -> None:
    torch.save(solo_learn(), tmp_path / "weights.ckpt")
    encoder = load_encoder(tmp_path / "weights.ckpt")
    save_encoder(tmp_path / "encoder.safetensors", {"teacher": encoder}, encoder.config, 32)
    images = torch.rand(2, 3, 32, 32)
    assert_close(load_encoder(tmp_path / "encoder.safetensors")(images), encoder(images))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("encoder_k.module.layer4.1.bn2.bias"), "layer4.1.bn2.bias is missing"),
        (lambda s: s.update({"encoder_k.module.extra.weight": torch.ones(2)}), "extra.weight has no place"),
        (lambda s: s.update({"encoder_k.module.conv1.weight": torch.ones(64, 3, 5, 5)}), "conv1.weight has the shape"),
        (lambda s: s.update({"surprise": torch.ones(2)}), "surprise belong to no part"),
    ],
)
def test_a_tensor_without_a_partner_is_named(change: Callable[[States], Any], words: str, tmp_path: Path) -> None:
    checkpoint = isd()
    change(checkpoint["state_dict"])
    torch.save(checkpoint, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=words):
        load_encoder(tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x02}q\x00.", b"PK\x03\x04 half a file"])
def test_a_wrong_file_gets_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(InputError) as refused:
        load_encoder(tmp_path / "weights.pth")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_checkpoint_is_closed(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"not weights")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        assert "it begins with b'not weights'" in refusal(load_encoder, tmp_path / "weights.pth")
    assert not caught


class Runs:
    "Calls a function when it is unpickled."

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("function", ["os", "eval", "exec", "getattr", "subprocess", "path"])
def test_a_hostile_file_runs_nothing(function: str, old: bool, tmp_path: Path) -> None:
    import subprocess

    mark = tmp_path / "mark"
    evil = dict(
        os=Runs(os.mkdir, str(mark)),
        eval=Runs(eval, f"__import__('os').mkdir({str(mark)!r})"),
        exec=Runs(exec, f"import os; os.mkdir({str(mark)!r})"),
        getattr=Runs(getattr, Runs(getattr, 1, "real"), "real"),
        subprocess=Runs(subprocess.check_output, ["mkdir", str(mark)]),
        path=Runs(Path.mkdir, Runs(Path, str(mark))),
    )[function]
    file = {"state_dict": {"conv1.weight": torch.ones(2)}, "opt": evil}
    torch.save(file, tmp_path / "weights.pth", _use_new_zipfile_serialization=not old)
    with contextlib.suppress(InputError):
        load_encoder(tmp_path / "weights.pth")
    assert not mark.exists()
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"state_dict": evil}))
    with pytest.raises(InputError):
        load_encoder(tmp_path / "plain.pth")
    assert not mark.exists()


def test_a_whole_network_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Sequential(OrderedDict(a=nn.Linear(2, 2))), tmp_path / "weights.pth")
    with pytest.raises(InputError, match="state_dict"):
        load_encoder(tmp_path / "weights.pth")


def test_another_network_is_named_before_the_file(tmp_path: Path) -> None:
    net = lively(timm.create_model("mobilenetv3_small_050", num_classes=10), 6)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match="timm:NAME@FILE"):
        load_encoder(tmp_path / "weights.pth")
    encoder, images = load_encoder(f"timm:mobilenetv3_small_050@{tmp_path / 'weights.pth'}"), torch.rand(2, 3, 64, 64)
    net.reset_classifier(0)
    with torch.no_grad():
        assert_close(encoder(images), net((images - encoder.mean) / encoder.std))
    with pytest.raises(InputError, match="does not match"):
        read_checkpoint(tmp_path / "weights.pth", network="timm:resnet18")


def test_the_encoders_that_are_shipped() -> None:
    from isd_nb import embed, knn_accuracy
    from isd_nb.sources.digits import digits

    encoder, (train, test) = load_encoder("shipped:digits"), digits(size=16, copies=1)
    assert knn_accuracy(embed(encoder, train), train.labels, embed(encoder, test), test.labels) > 0.95
    photographs = load_encoder("shipped:cifar10")  # the teacher alone, convolutions in half precision
    assert photographs(torch.rand(2, 3, 32, 32)).shape == (2, 256)
    assert next(photographs.parameters()).dtype == torch.float32


def efficientnet(name: str, repeats: tuple[int, ...], squeeze: bool) -> tuple[nn.Module, States]:
    "A network of timm, and its tensors as lukemelas/EfficientNet-PyTorch (efficientnet_pytorch/model.py) names them."
    net = lively(timm.create_model(name, num_classes=10), 8)
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    parts = [("_conv_stem", ("weight",)), ("_bn0", norm)]
    for i in range(sum(repeats)):
        block = [("_expand_conv", ("weight",)), ("_bn0", norm)] if i >= repeats[0] else []
        block += [("_depthwise_conv", ("weight",)), ("_bn1", norm)]
        block += [(part, ("weight", "bias")) for part in ("_se_reduce", "_se_expand")] if squeeze else []
        block += [("_project_conv", ("weight",)), ("_bn2", norm)]
        parts += [(f"_blocks.{i}.{part}", ends) for part, ends in block]
    parts += [("_conv_head", ("weight",)), ("_bn1", norm), ("_fc", ("weight", "bias"))]
    names = [f"{part}.{end}" for part, ends in parts for end in ends]
    return net, dict(zip(names, net.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("name", "repeats", "squeeze"),
    [("tf_efficientnet_lite0", (1, 2, 2, 3, 3, 4, 1), False), ("tf_efficientnet_b1", (2, 3, 3, 4, 4, 5, 2), True)],
)
def test_efficientnets_become_those_of_timm(name: str, repeats: tuple[int, ...], squeeze: bool, tmp_path: Path) -> None:
    net, state = efficientnet(name, repeats, squeeze)
    torch.save(state, tmp_path / "weights.pth")
    encoder, images = load_encoder(tmp_path / "weights.pth"), torch.rand(2, 3, 64, 64)
    assert encoder.config.name == f"timm:{name}" and encoder.metadata["normalisation"] == "timm's, assumed"
    net.reset_classifier(0)
    with torch.no_grad():
        assert_close(encoder(images), net((images - encoder.mean) / encoder.std))
    torch.save({k: v for k, v in state.items() if k != "_blocks.3._bn2.bias"}, tmp_path / "broken.pth")
    with pytest.raises(InputError, match=r"blocks\.\d\.\d\.bn3\.bias is missing"):
        load_encoder(tmp_path / "broken.pth")
    torch.save(net.state_dict(), tmp_path / "timm.pth")  # efficientnet_b1 has the same tensors
    with pytest.raises(InputError, match="put its name before the file"):
        load_encoder(tmp_path / "timm.pth")


def test_a_named_network_goes_on_from_an_efficientnet(tmp_path: Path) -> None:
    net, state = efficientnet("tf_efficientnet_lite0", (1, 2, 2, 3, 3, 4, 1), False)
    torch.save(state, tmp_path / "weights.pth")
    recipe = fit_recipe(choose_recipe(None, "digits"), "timm:tf_efficientnet_lite0", str(tmp_path / "weights.pth"), 64)
    method = build_method(recipe, ImageSet(torch.zeros(4, 3, 64, 64, dtype=torch.uint8)))
    for encoder in (method.student, method.teacher.module):
        own = encoder.backbone.net.state_dict()
        assert all(torch.equal(own[k], v) for k, v in net.state_dict().items() if not k.startswith("classifier"))
        assert encoder.mean.flatten().tolist() == [0.5] * 3


def moco_v3(learned: bool = False) -> nn.Module:
    # facebookresearch/moco-v3, vits.py (vit_small, build_2d_sincos_position_embedding): 12 heads, fixed positions
    net = lively(timm.create_model("vit_small_patch16_224", num_heads=12, depth=1, img_size=64, num_classes=0), 9)
    rates = 1.0 / (10000.0 ** (torch.arange(96) / 96))
    out_w, out_h = (
        torch.einsum("m,d->md", grid.flatten(), rates)
        for grid in torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    )
    table = torch.cat([out_w.sin(), out_w.cos(), out_h.sin(), out_h.cos()], 1)[None]
    if not learned:
        net.pos_embed.data = torch.cat([torch.zeros(1, 1, 384), table], 1)
    return net


@pytest.mark.parametrize("kind", ["builder", "linear", "solo-learn", "keys alone"])
def test_moco_v3_has_twelve_heads(kind: str, tmp_path: Path) -> None:
    net, file = moco_v3(learned=kind == "keys alone"), tmp_path / "weights.pth"
    state = {
        "builder": prefixed("module.base_encoder.", vit())
        | prefixed("module.momentum_encoder.", net)
        | prefixed("module.predictor.", mlp(4, 8)),
        "linear": prefixed("module.", net) | prefixed("module.head.", mlp(384, 10)),
        "solo-learn": prefixed("backbone.", vit())
        | prefixed("momentum_backbone.", net)
        | prefixed("projector.", mlp(384, 8)),
        "keys alone": prefixed("module.momentum_encoder.", net),
    }[kind]
    torch.save({"state_dict": state, "arch": "vit_small"}, file)
    encoder, images = load_encoder(file), torch.rand(2, 3, 64, 64)
    assert "patch_size=16,num_heads=12" in source_line(encoder) and "ImageNet's, assumed" in source_line(encoder)
    with torch.no_grad():
        assert_close(encoder(images), net((images - encoder.mean) / encoder.std), atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match=r"12 heads, and .* has 6: add ,num_heads=12"):
        load_encoder(f"timm:vit_small_patch16_224,img_size=64,depth=1@{file}")


class DinoV2(nn.Module):
    "facebookresearch/dinov2, dinov2/models/vision_transformer.py, with timm's blocks, which have the same names."

    def __init__(self, registers: int) -> None:
        super().__init__()
        whole = timm.create_model(
            "vit_tiny_patch16_224", depth=2, init_values=0.1, patch_size=14, img_size=56, num_classes=0
        )
        self.patch_embed, self.blocks, self.norm, self.cls_token = (
            whole.patch_embed,
            whole.blocks,
            whole.norm,
            whole.cls_token,
        )
        self.pos_embed, self.mask_token = nn.Parameter(torch.rand(1, 17, 192)), nn.Parameter(torch.rand(1, 192))
        self.register_tokens = nn.Parameter(torch.rand(1, registers, 192)) if registers else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)], 1) + self.pos_embed
        if self.register_tokens is not None:
            tokens = torch.cat([tokens[:, :1], self.register_tokens.expand(len(images), -1, -1), tokens[:, 1:]], 1)
        return self.norm(self.blocks(tokens))[:, 0]


@pytest.mark.parametrize("registers", [0, 4])
def test_dino_v2(registers: int, tmp_path: Path) -> None:
    net, images = lively(DinoV2(registers), 10), torch.rand(2, 3, 56, 56)
    torch.save(net.state_dict(), tmp_path / "published.pth")
    chunks = {
        k.replace("blocks.", "blocks.0."): v for k, v in prefixed("backbone.", net).items()
    }  # as train.py saves the teacher
    torch.save({"teacher": chunks | prefixed("dino_head.mlp.", mlp(192, 8))}, tmp_path / "training.pth")
    with torch.no_grad():
        for file in ("published.pth", "training.pth"):
            encoder = load_encoder(tmp_path / file)
            assert_close(encoder(images), net((images - encoder.mean) / encoder.std), atol=1e-5, rtol=1e-5)
            assert encoder.metadata["normalisation"] == "ImageNet's, assumed" and encoder.image_size == 56


def test_mae_fine_tuned_on_the_mean_of_patches(tmp_path: Path) -> None:
    # facebookresearch/mae, models_vit.py (global_pool): fc_norm instead of norm
    net = lively(timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64, num_classes=0, global_pool="avg"), 11)
    torch.save({"model": net.state_dict() | prefixed("head.", nn.Linear(192, 10))}, tmp_path / "weights.pth")
    encoder, images = load_encoder(tmp_path / "weights.pth"), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert_close(encoder(images), net((images - encoder.mean) / encoder.std), atol=1e-5, rtol=1e-5)


class ClipTower(nn.Module):
    "mlfoundations/open_clip, src/open_clip/transformer.py (VisionTransformer), without the last product with proj."

    def __init__(self, quick: bool) -> None:
        super().__init__()
        self.quick, self.conv1 = quick, nn.Conv2d(3, 64, 16, 16, bias=False)
        self.class_embedding, self.positional_embedding = nn.Parameter(torch.rand(64)), nn.Parameter(torch.rand(17, 64))
        self.ln_pre, self.ln_post, self.proj = nn.LayerNorm(64), nn.LayerNorm(64), nn.Parameter(torch.rand(64, 8))
        block = nn.ModuleDict(
            dict(ln_1=nn.LayerNorm(64), attn=nn.MultiheadAttention(64, 2, batch_first=True), ln_2=nn.LayerNorm(64))
        )
        block["mlp"] = nn.Sequential(OrderedDict(c_fc=nn.Linear(64, 256), gelu=nn.GELU(), c_proj=nn.Linear(256, 64)))
        self.transformer = nn.ModuleDict(dict(resblocks=nn.ModuleList([block])))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = self.ln_pre(torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding)
        for block in self.transformer["resblocks"]:
            y = block["ln_1"](x)
            x = x + block["attn"](y, y, y, need_weights=False)[0]
            y = block["mlp"].c_fc(block["ln_2"](x))
            x = x + block["mlp"].c_proj(y * torch.sigmoid(1.702 * y) if self.quick else nn.functional.gelu(y))
        return self.ln_post(x)[:, 0]


@pytest.mark.parametrize("quick", [False, True])
def test_clip_needs_to_be_named(quick: bool, tmp_path: Path) -> None:
    net, file, images = lively(ClipTower(quick), 12), tmp_path / "weights.pt", torch.rand(2, 3, 64, 64)
    text = {
        "logit_scale": torch.ones(()),
        "text_projection": torch.rand(8, 8),
        "transformer.resblocks.0.ln_1.weight": torch.rand(8),
    }
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in (prefixed("visual.", net) | text).items()}, "epoch": 3}, file
    )
    with pytest.raises(InputError, match="CLIP's visual tower but not its activation"):
        load_encoder(file)
    name = f"timm:vit_base_patch16_clip_{'quickgelu_' if quick else ''}224,depth=1,embed_dim=64,num_heads=2,img_size=64"
    encoder = load_encoder(f"{name}@{file}")
    with torch.no_grad():
        assert_close(encoder(images), net((images - encoder.mean) / encoder.std), atol=1e-5, rtol=1e-5)
    assert abs(float(encoder.mean[0]) - 0.4815) < 1e-3  # CLIP's own statistics


def test_an_average_is_the_teacher(tmp_path: Path) -> None:
    torch.save(timm_training(), tmp_path / "weights.pth")
    student, images = load_encoder(tmp_path / "weights.pth", "student"), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert_close(
            student(images), headless(other()).eval()((images - student.mean) / student.std), atol=1e-5, rtol=1e-5
        )


def test_a_wrapper_around_a_named_network(tmp_path: Path) -> None:
    net = lively(timm.create_model("mobilenetv3_small_050", num_classes=10), 6)
    save_file(prefixed("model.net.", net), tmp_path / "weights.safetensors", metadata={"format": "pt", "epoch": "3"})
    encoder, images = (
        load_encoder(f"timm:mobilenetv3_small_050@{tmp_path / 'weights.safetensors'}"),
        torch.rand(2, 3, 64, 64),
    )
    net.reset_classifier(0)
    with torch.no_grad():
        assert_close(encoder(images), net((images - encoder.mean) / encoder.std))


STRANGERS = {  # made of the words of other sources: none is guessed at
    "transformers": {
        "embeddings.cls_token": torch.rand(1, 1, 8),
        "encoder.layer.0.attention.attention.query.weight": torch.rand(8, 8),
    },
    "conv stem": {
        f"module.base_encoder.{k}": v
        for k, v in {
            "cls_token": torch.rand(1, 1, 8),
            "pos_embed": torch.rand(1, 5, 8),
            "patch_embed.proj.0.weight": torch.rand(4, 3, 3, 3),
        }.items()
    },
    "language": {"model.embed_tokens.weight": torch.rand(8, 8), "model.norm.weight": torch.rand(8)},
    "clip resnet": {
        "visual.conv1.weight": torch.rand(32, 3, 3, 3),
        "visual.layer1.0.conv1.weight": torch.rand(64, 64, 1, 1),
        "visual.attnpool.positional_embedding": torch.rand(50, 8),
    },
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_gets_one_sentence(name: str, tmp_path: Path) -> None:
    torch.save(STRANGERS[name], tmp_path / "weights.pth")
    with pytest.raises(InputError, match="put its name before the file") as refused:
        load_encoder(tmp_path / "weights.pth")
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError):
        load_encoder(f"timm:resnet18@{tmp_path / 'weights.pth'}")


@pytest.mark.parametrize(("change", "words"), [
    (lambda v: (100 * v).to(torch.int8), "conv1.weight is torch.int8"),
    (lambda v: v.cfloat(), "conv1.weight is torch.complex64"),
    (lambda v: v.to_sparse(), "conv1.weight is torch.float32 .torch.sparse_coo"),
])
def test_numbers_of_another_kind_are_no_weights(change: Callable[[Any], Any], words: str, tmp_path: Path) -> None:
    "Copied into a network, numbers of 8 bits are a hundred times too large, and complex ones lose a half."
    state = models.resnet18().state_dict()
    torch.save(state | {"conv1.weight": change(state["conv1.weight"])}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=words):
        load_encoder(tmp_path / "weights.pth")


def test_what_was_downloaded_instead_of_weights_is_shown(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(InputError, match="it begins with b'<!DOCTYPE ht"):
        load_encoder(tmp_path / "weights.pth")


@pytest.mark.parametrize(("name", "content", "words"), [
    ("weights.pth", b"", "is empty, 0 bytes"),
    ("weights.safetensors", b"", "is empty, 0 bytes"),
    ("weights.pth", b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
    ("weights.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
    ("weights.safetensors", "torch", "give it the ending .pth"),
    ("weights.pth", "safetensors", "give it the ending .safetensors"),
    ("model-00001-of-00002.safetensors", "safetensors", "files that a model is cut into"),
    ("model.safetensors.index.json", b'{"metadata": {}, "weight_map": {}}', "files that a model is cut into"),
    ("table.csv", b"file,label\n", "is a table, a text or an array"),
])
def test_a_file_of_another_kind_is_named(name: str, content: bytes | str, words: str, tmp_path: Path) -> None:
    path, state = tmp_path / name, {"conv1.weight": torch.ones(2, 3)}
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(state, path) if content == "torch" else save_file(state, path)
    with pytest.raises(InputError, match=words):
        open_encoder(str(path))


@pytest.mark.parametrize(("content", "words"), [
    ({"checkpoint": {"model": {"state_dict": {"conv1.weight": torch.ones(2)}}}},
     "torch.load(FILE)['checkpoint']['model']['state_dict']"),
    ({"conv1.weight": np.ones(2)}, "holds arrays of NumPy: save tensors"),
    ({"student.fc.bias": torch.ones(2), "teacher.fc.bias": torch.ones(2)}, "two networks, student.* and teacher.*"),
    ({"state_dict": {"model.student.bias": torch.ones(2), "model.teacher.bias": torch.ones(2)}},
     "k.startswith('model.teacher.')"),
])
def test_what_lies_elsewhere_in_a_file_is_named(content: object, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    for source in (tmp_path / "weights.pth", f"resnet18@{tmp_path / 'weights.pth'}"):
        with pytest.raises(InputError, match=re.escape(words)):
            open_encoder(str(source))


def test_a_file_whose_sums_do_not_fit_is_refused(tmp_path: Path) -> None:
    torch.save(models.resnet18().state_dict(), path := tmp_path / "weights.pth")
    values = bytearray(path.read_bytes())
    values[len(values) // 2] ^= 64  # one bit of one weight
    path.write_bytes(values)
    for source in (path, f"resnet18@{path}"):
        with pytest.raises(InputError, match=r"is damaged: .* is not what was written"):
            open_encoder(str(source))


@pytest.mark.parametrize("length", [0x80, 0x4B50])
def test_the_length_of_a_header_is_no_sign_of_another_format(tmp_path: Path, length: int) -> None:
    "Its first bytes may be those of a pickle or of a zip file."
    header = b'{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    (path := tmp_path / "weights.safetensors").write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    check_kind(path)


def test_what_a_run_goes_on_from_is_no_encoder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    saved = dict(step=3, method={"student.weight": torch.ones(2)}, optimizer={})
    place = save_checkpoint(tmp_path / "run/checkpoints", 3, saved)
    with pytest.raises(InputError, match=r"not an encoder: give .*run$"):
        open_encoder(str(place))
    (place.parent / "encoder_00000002.safetensors").touch()
    with pytest.raises(InputError, match=r"not an encoder: give .*encoder_00000002\.safetensors$"):
        open_encoder(str(place))


def test_a_network_before_a_file_is_suggested(tmp_path: Path) -> None:
    torch.save(models.resnet18().state_dict(), tmp_path / "weights.pth")
    for name, near in (("resnet34", "did you mean torchvision:resnet34 or"), ("ResNet-18", "did you mean resnet18 or"),
                       ("x", "known: tiny")):
        with pytest.raises(InputError, match=near):
            open_encoder(f"{name}@{tmp_path / 'weights.pth'}")


def test_a_place_that_is_not_known_is_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "network": models.resnet18().state_dict()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="'network' in it does: save that alone"):
        load_encoder(tmp_path / "weights.pth")


def test_our_own_networks_are_named_before_a_file_too(tmp_path: Path) -> None:
    torch.save(models.resnet18().state_dict(), tmp_path / "weights.pth")
    assert load_encoder(f"resnet18@{tmp_path / 'weights.pth'}").config.name == "resnet18"
    with pytest.raises(InputError, match="read as tiny"):
        load_encoder(f"tiny@{tmp_path / 'weights.pth'}")


@pytest.mark.parametrize("name", ["layer1.0.conv1.weight", "bn1.running_var"])
def test_weights_that_are_not_finite_are_refused(name: str, tmp_path: Path) -> None:
    "Features of them would be written to a file as NaN."
    state = models.resnet18().state_dict()
    torch.save(state | {name: state[name] * float("nan")}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=f"NaN or infinite values in {name}: the training that wrote it has diverged"):
        load_encoder(tmp_path / "weights.pth")
