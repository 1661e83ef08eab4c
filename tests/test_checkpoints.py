"""Checkpoints of others, made in the layouts that their sources write, give the features of the network they came from.

Each case cites the repository and the file whose lines decide the keys; the networks are small but for their depth.
"""

import argparse
import contextlib
import copy
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close
from torchvision import models

from isd_nb.encoders import load_encoder, save_encoder
from isd_nb.errors import InputError
from isd_nb.data import ImageSet
from isd_nb.methods.building import build_method
from isd_nb.methods.checkpoints import fit_recipe, read_checkpoint
from isd_nb.methods.choosing import choose_recipe

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
    net = copy.deepcopy(net)
    net.fc = nn.Identity()
    return net


def mlp(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(i, o) for i, o in zip(sizes, sizes[1:])))


class Settings(dict):
    "Stands for Lightning's AttributeDict: a dictionary of a class that is not known."


RESNET = lively(models.resnet18(), 0)
OTHER = lively(models.resnet18(), 1)
SMALL = lively(models.resnet18(), 2)
SMALL.conv1, SMALL.maxpool = nn.Conv2d(3, 64, 3, 1, 2, bias=False), nn.Identity()  # solo-learn: padding=2
VIT = lively(timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64, num_classes=0), 3)


def isd() -> Any:
    # UMBCvision/ISD, train_isd.py: encoder_q, encoder_k and predict_q are DataParallel, fc is empty;
    # saved with opt and optimizer
    state = {
        **prefixed("encoder_q.module.", headless(OTHER)),
        **prefixed("encoder_k.module.", headless(RESNET)),
        **prefixed("predict_q.module.", mlp(512, 8, 512)),
        "queue": torch.rand(16, 512),
        "queue_ptr": torch.zeros(1).long(),
    }
    return {"opt": argparse.Namespace(arch="resnet18"), "state_dict": state, "optimizer": {"state": {}}, "epoch": 3}


def byol() -> Any:
    # UMBCvision/ISD, train_byol.py: the same, with an MLP in fc and without a queue
    student, teacher = headless(OTHER), headless(RESNET)
    student.fc, teacher.fc = mlp(512, 8, 4), mlp(512, 8, 4)
    state = {
        **prefixed("encoder_q.module.", student),
        **prefixed("encoder_k.module.", teacher),
        **prefixed("predict_q.module.", mlp(4, 8, 4)),
    }
    return {"opt": argparse.Namespace(arch="resnet18"), "state_dict": state, "optimizer": {}, "epoch": 3}


def mean_shift() -> Any:
    # UMBCvision/MSF, train_msf.py: encoder_t is the target
    student, teacher = headless(OTHER), headless(RESNET)
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
        "model": prefixed("module.", headless(RESNET)),
        "optimizer": {},
        "epoch": 3,
    }


def moco_v1() -> Any:
    # facebookresearch/moco, moco/builder.py: fc is one linear layer; main_moco.py saves the state_dict of
    # DistributedDataParallel
    state = {
        **prefixed("module.encoder_q.", OTHER),
        **prefixed("module.encoder_k.", RESNET),
        "module.queue": torch.rand(8, 16),
        "module.queue_ptr": torch.zeros(1).long(),
    }
    return {"epoch": 3, "arch": "resnet18", "state_dict": state, "optimizer": {}}


def moco_v2() -> Any:
    # facebookresearch/moco, moco/builder.py with mlp=True: fc is Sequential(Linear, ReLU, Linear)
    student, teacher = headless(OTHER), headless(RESNET)
    student.fc = teacher.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    state = {
        **prefixed("module.encoder_q.", student),
        **prefixed("module.encoder_k.", teacher),
        "module.queue": torch.rand(128, 16),
        "module.queue_ptr": torch.zeros(1).long(),
    }
    return {"epoch": 3, "arch": "resnet18", "state_dict": state, "optimizer": {}}


def simsiam() -> Any:
    # facebookresearch/simsiam, simsiam/builder.py: encoder with fc of eight layers, predictor
    net = headless(RESNET)
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
        **prefixed("module.", headless(RESNET)),
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
        "teacher": prefixed("backbone.", VIT) | prefixed("head.mlp.", mlp(192, 8)),
        "optimizer": {},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_tiny"),
        "dino_loss": {"center": torch.zeros(1, 8)},
    }


def dino_published() -> Any:
    # facebookresearch/dino, utils.py (load_pretrained_weights): the backbone's own names, vision_transformer.py
    return VIT.state_dict()


def barlow_twins() -> Any:
    # facebookresearch/barlowtwins, main.py: model is DDP's state_dict of backbone, projector and bn
    bn = nn.BatchNorm1d(8, affine=False)
    state = {
        **prefixed("module.backbone.", headless(RESNET)),
        **prefixed("module.projector.", mlp(512, 8, 8)),
        **prefixed("module.bn.", bn),
    }
    return {"epoch": 3, "model": state, "optimizer": {}}


def lightly_example() -> Any:
    # lightly-ai/lightly, examples/pytorch_lightning/moco.py: backbone = nn.Sequential(*list(resnet.children())[:-1])
    student, teacher = (nn.Sequential(*list(net.children())[:-1]) for net in (OTHER, RESNET))
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
        **prefixed("backbone.", headless(OTHER)),
        **prefixed("teacher_backbone.", headless(RESNET)),
        **prefixed("projection_head.layers.", mlp(512, 8)),
        **prefixed("prediction_head.layers.", mlp(8, 8)),
        **prefixed("teacher_projection_head.layers.", mlp(512, 8)),
        **prefixed("online_classifier.linear.", mlp(512, 10)),
    }
    return {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.0.0"}


def solo_learn() -> Any:
    # vturrisi/solo-learn, solo/methods/base.py (CIFAR: conv1 of 3 x 3 with padding=2) and mocov2plus.py
    state = {
        **prefixed("backbone.", headless(lively(copy.deepcopy(SMALL), 5))),
        **prefixed("momentum_backbone.", headless(SMALL)),
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
        **prefixed("encoder.", headless(RESNET)),
        **prefixed("classifier.", nn.Linear(512, 10)),
        **prefixed("projector.", mlp(512, 8, 8)),
    }
    return {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "1.4.0"}


def torchvision_weights() -> Any:
    return RESNET.state_dict()  # pytorch/vision, torchvision/models/resnet.py, run here


def data_parallel() -> Any:
    return {"state_dict": nn.DataParallel(RESNET).state_dict(), "epoch": 3}


def timm_weights() -> Any:
    net = timm.create_model("resnet18", num_classes=10)  # huggingface/pytorch-image-models, run here
    net.load_state_dict(headless(RESNET).state_dict(), strict=False)
    return net.state_dict()


LAYOUTS: dict[Callable[[], Any], nn.Module] = dict.fromkeys(
    (
        isd,
        byol,
        mean_shift,
        compress,
        moco_v1,
        moco_v2,
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
    ),
    RESNET,
) | {solo_learn: SMALL, dino: VIT, dino_published: VIT}
FILES = {make.__name__: (make, net) for make, net in LAYOUTS.items()}


@pytest.mark.parametrize("name", FILES)
def test_a_layout_gives_the_features_of_its_network(name: str, tmp_path: Path) -> None:
    make, net = FILES[name]
    torch.save(make(), tmp_path / "weights.pth")
    encoder = load_encoder(tmp_path / "weights.pth")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = net if hasattr(net, "patch_embed") else headless(net).eval()
    with torch.no_grad():
        assert_close(encoder(images), whole((images - encoder.mean) / encoder.std).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["isd", "mean_shift", "moco_v2", "dino", "lightly_example", "solo_learn"])
def test_the_student_is_another_one(name: str, tmp_path: Path) -> None:
    torch.save(FILES[name][0](), tmp_path / "weights.pth")
    both = [load_encoder(tmp_path / "weights.pth", which) for which in ("teacher", "student")]
    images = torch.rand(2, 3, 64, 64)
    assert not torch.allclose(*(encoder(images) for encoder in both), atol=1e-3)
    assert [encoder.metadata["encoders"] for encoder in both] == [["teacher"], ["student"]]


def test_safetensors_and_the_old_file_format(tmp_path: Path) -> None:
    save_file({k: v.contiguous() for k, v in RESNET.state_dict().items()}, tmp_path / "weights.safetensors")
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
    torch.save(
        {"state_dict": RESNET.state_dict(), "opt": evil},
        tmp_path / "weights.pth",
        _use_new_zipfile_serialization=not old,
    )
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
