"""Encoder files, checkpoints and networks that are not what they should be: one sentence, no code of a file is run."""
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close
from torchvision import models

import isd_nb
import isd_nb.kernels.convolution as convolution
import isd_nb.methods.checkpoints as checkpoints
from isd_nb.data import ImageSet
from isd_nb.encoders import BackboneConfig, Encoder, build_backbone, load_encoder, read_safetensors, save_encoder
from isd_nb.engine.state import prepare_training, restore_train_state, save_train_state, train_step
from isd_nb.engine.export import to_share
from isd_nb.errors import refusal
from isd_nb.methods.building import build_method
from isd_nb.methods.checkpoints import fit_recipe, open_encoder, with_weights
from isd_nb.methods.choosing import change_setting, choose_recipe
from isd_nb.methods.own_networks import check_network, check_own
from isd_nb.protocols.fine_tuning import with_channels
from isd_nb.recipe import Recipe

SHORT = Recipe("short", steps=4, batch_size=8, queue_size=16, evaluations=1, projector=(8, 4), predictor=(),
               image_size=32, width=4, precision="float32")
IMAGES = ImageSet(torch.randint(256, (16, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8),
                  torch.arange(16) % 2, classes=("a", "b"))


class Plain(nn.Module):
    "Convolution, batch norm and mean."

    def __init__(self, channels: int, width: int = 6) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(channels, width, 3, 2), nn.BatchNorm2d(width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(images)).mean((2, 3))


@pytest.fixture
def own(make_module: Callable[..., ModuleType]) -> ModuleType:
    "A module of the user's, to which tests add networks."
    return make_module("own_networks", net=Plain)


def own_file(path: Path, name: str = "own_networks:net", built: str = "own_networks:net") -> Path:
    "An encoder file of the network `built`, whose header names another one."
    config = BackboneConfig(built, stem="large")
    save_encoder(path, {"teacher": Encoder(build_backbone(config), [0.5] * 3, [0.5] * 3)}, config, 16)
    if name != built:
        with_header(path, lambda header: header["config"].update(name=name))
    return path


def with_header(path: Path, change: Callable[[dict], object] | str) -> Path:
    "The file with another header: a text, or what a function makes of it."
    header, _, state = read_safetensors(path, "")
    if not isinstance(change, str):
        change(header)
    save_file(state, path, metadata={"isd_nb": change if isinstance(change, str) else json.dumps(header)})
    return path


@pytest.mark.parametrize("name", ["os:_exit", "sys:exit", "evilmod:go", "torch.hub:load", "posix:_exit",
                                  "timm:resnet18,checkpoint_path=evil.pth"])
def test_a_header_runs_no_code(name: str, own: ModuleType, tmp_path: Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evilmod.py").write_text("open('owned', 'w').close()\ndef go(channels): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    file = own_file(tmp_path / "strange.safetensors", name)
    monkeypatch.setattr(checkpoints, "hub_file", lambda text: file)
    for source in (str(file), "hub:some/one"):
        said = refusal(open_encoder, source)
        assert f"names code as its network, {name}, " in said and f"give the file as {name}@{file}" in said, said
    (tmp_path / "config.json").write_text(json.dumps(dict(recipe=dict(name="short", backbone="own_networks:net"))))
    assert "names code as its network" in refusal(load_encoder, file)
    assert "names code as its network" in refusal(load_encoder, f"own_networks:net@{file}")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["os:_exit", "sys:exit", "torch.hub:load", "posix:_exit", "test.support:requires"])
def test_functions_of_python_and_pytorch_are_no_networks(name: str, own: ModuleType, tmp_path: Path) -> None:
    file = own_file(tmp_path / "encoder.safetensors", name)
    (tmp_path / "config.json").write_text(json.dumps(dict(recipe=dict(name="short", backbone=name))))
    for source in (str(file), f"{name}@{file}"):
        assert f"{name} is a part of Python or PyTorch" in refusal(open_encoder, source)


def test_a_network_that_the_user_names_is_built(own: ModuleType, tmp_path: Path) -> None:
    file, images = own_file(tmp_path / "encoder.safetensors"), torch.rand(2, 3, 16, 16)
    features = open_encoder(f"own_networks:net@{file}")(images)
    assert_close(open_encoder(str(file), "own_networks:net")(images), features)
    config = BackboneConfig("tiny", width=4)
    save_encoder(file, {"teacher": Encoder(build_backbone(config), [0.5] * 3, [0.5] * 3)}, config, 16)
    assert "holds tiny, not resnet18: leave out what is before the @" in refusal(load_encoder, f"resnet18@{file}")
    assert load_encoder(f"tiny@{file}").config == config


def test_a_run_of_ones_own_network_needs_no_name(own: ModuleType, tmp_path: Path) -> None:
    recipe, run = replace(SHORT, backbone="own_networks:net", stem="large"), tmp_path / "run"
    encoders = isd_nb.train(recipe, IMAGES, run, IMAGES, device="cpu", threads=1).encoders
    isd_nb.train(recipe, IMAGES, run, IMAGES, resume=True, device="cpu", threads=1)
    files = [run, run / "encoder.safetensors", *sorted((run / "checkpoints").glob("encoder_*.safetensors"))]
    pixels = IMAGES.get(torch.arange(4)) / 255
    assert len(files) > 2
    assert_close(load_encoder(files[-1])(pixels), encoders["teacher"](pixels))
    assert all(open_encoder(str(file)).config.name == recipe.backbone for file in files)
    other = replace(with_weights(SHORT, str(run), None, 32), init=str(run / "encoder.safetensors"))
    assert build_method(other, IMAGES).student.backbone.num_features == 6
    (tmp_path / "loose.safetensors").write_bytes((run / "encoder.safetensors").read_bytes())
    build_method(fit_recipe(SHORT, recipe.backbone, str(tmp_path / "loose.safetensors"), 32), IMAGES)


def test_a_run_of_ones_own_network_is_shared_with_its_name(own: ModuleType, tmp_path: Path) -> None:
    recipe, run = replace(SHORT, backbone="own_networks:net", stem="large"), tmp_path / "run"
    isd_nb.train(recipe, IMAGES, run, IMAGES, device="cpu", threads=1)
    file, card = to_share(run, tmp_path / "shared", "some/one")
    line = re.search(r'load_encoder\("(.+)", which="(\w+)"\)  # needs the module own_networks', card.read_text())
    assert line and line[1] == f"own_networks:net@{file.name}"
    assert load_encoder(f"own_networks:net@{file}", line[2]).config.name == recipe.backbone
    assert "names code" in refusal(load_encoder, file)


def test_a_run_from_the_hub_is_not_a_run_of_ones_own(own: ModuleType, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = json.dumps(dict(recipe=dict(name="short", backbone="own_networks:net")))
    for place in ("hub/models--some--one/snapshots/1", "downloaded"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.json").write_text(recipe)
    (tmp_path / "downloaded" / ".cache" / "huggingface").mkdir(parents=True)
    for place in ("hub/models--some--one/snapshots/1", "downloaded"):
        assert "names code" in refusal(load_encoder, own_file(tmp_path / place / "encoder.safetensors"))
    (tmp_path / "config.json").write_text(recipe)
    file = own_file(tmp_path / "encoder.safetensors")
    monkeypatch.setattr(checkpoints, "hub_file", lambda text: file)
    assert "names code" in refusal(load_encoder, "hub:some/one")


class Counts(nn.BatchNorm1d):
    "Keeps a dictionary in its state."

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 3}

    def set_extra_state(self, state: dict[str, int]) -> None: ...


class Odd(Plain):
    "Batch norm without running statistics, another width or shape while it trains, or a state that is no tensor."

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__(channels)
        self.kind, self.last = kind, nn.BatchNorm1d(6, affine=False, track_running_stats=kind != "alone")
        if kind == "batch":
            self.norm = nn.BatchNorm2d(6, track_running_stats=False)
        if kind == "state":
            self.last = Counts(6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.norm(self.layer(images))
        if self.training and self.kind == "places":
            return found
        found = self.last(found.mean((2, 3)))
        found = found.repeat(1, 2) if self.training and self.kind == "wide" else found
        return nn.functional.dropout(found, 0.5, self.training)


@pytest.mark.parametrize(("kind", "words"), [
    ("batch", "computes other features of an image alone, not those that it has in a batch"),
    ("alone", "computes no features (own_networks:odd,kind=alone cannot take images of 32 x 32 pixels"),
    ("wide", "makes 12 features of an image while it trains, and 6 in evaluation mode"),
    ("places", "while it trains, must make one vector of each image, (B, F), not a tensor of shape (2, 6, 15, 15)"),
    ("state", "keeps more than tensors in its state_dict, net.last._extra_state (dict)"),
])
def test_a_network_that_differs_alone_or_while_it_trains_is_refused_before_training(
        kind: str, words: str, own: ModuleType, tmp_path: Path) -> None:
    own.odd = Odd
    recipe = replace(SHORT, backbone=f"own_networks:odd,kind={kind}", stem="large")
    assert words in refusal(build_method, recipe, IMAGES)


class Centred(nn.Module):
    "Subtracts the mean of a batch, with batch norm or without."

    def __init__(self, channels: int, norm: bool) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(channels, 6, 3, 2), nn.BatchNorm2d(6) if norm else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.norm(self.layer(images)).mean((2, 3))
        return found - found.mean(0)


@pytest.mark.parametrize(("norm", "words"), [("true", "must not matter, so leave track_running_stats of every"),
                                             ("false", "must not matter, so compute nothing across images")])
def test_what_mixes_images_is_named_by_what_a_network_has(norm: str, words: str, own: ModuleType) -> None:
    own.centred = Centred
    recipe = replace(SHORT, backbone=f"own_networks:centred,norm={norm}", stem="large", image_size=32)
    net = build_backbone(BackboneConfig(recipe.backbone, stem="large"))
    said = refusal(check_own, net, recipe, 3)
    assert words in said and ("track_running_stats" in said) == (norm == "true")


def test_the_look_at_a_network_that_trains_changes_nothing(own: ModuleType) -> None:
    own.odd = Odd
    recipe = replace(SHORT, backbone="own_networks:odd,kind=usual", stem="large")
    torch.manual_seed(3)
    net = build_backbone(BackboneConfig(recipe.backbone, stem="large")).train()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    check_network(net, recipe, 3)
    assert torch.equal(state, torch.get_rng_state()) and net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Habit(Plain):
    "Plain, with a habit that shows in training, in copies or in files."

    def __init__(self, channels: int, habit: str) -> None:
        super().__init__(channels)
        self.habit, self.seen, self.box = habit, 0, dict[str, torch.Tensor]()
        self.register_buffer("centre", torch.zeros(6).to_sparse() if habit == "sparse" else None)
        if habit == "scripted":
            self.norm = torch.jit.script(self.norm)
        if habit == "hooked":
            self.norm.register_forward_hook(lambda part, inputs, output: self.box.update(found=output.mean((2, 3))))
        if habit == "single":
            self.last = nn.Linear(6, 6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = super().forward(images)
        if self.habit == "hooked":
            return self.box["found"]
        if self.habit == "single":  # what autocast makes of a layer does not fit into a sum
            return torch.zeros(len(found), 6).index_add_(0, torch.arange(len(found)), self.last(found))
        if self.training and self.habit == "late":
            self.centre = found.detach().mean(0)
        if self.habit in ("key", "key_in_large_batches") and len(images) > 2 * (self.habit != "key"):
            raise KeyError("features")
        self.seen += self.training and self.habit == "counts"
        if self.training and self.habit == "chance":
            found = found * random.random() + np.random.rand()  # noqa: NPY002
        return found.detach() if self.habit == "cut" else found


class Unlearned(Plain):
    "Its features have no gradient."

    forward = torch.inference_mode()(Plain.forward)


def build(habit: str, **changes: object) -> Recipe:
    return replace(SHORT, backbone=f"own_networks:habit,habit={habit}", stem="large", **changes)


@pytest.mark.parametrize(("habit", "words"), [
    ("cut", "cuts the gradient while it trains, so that nothing in it would learn"),
    ("late", "has other tensors after its first pass in training (net.centre)"),
    ("sparse", "keeps sparse tensors, net.centre (sparse_coo)"),
    ("scripted", "with a part of it"),
    ("hooked", "a copy of own_networks:habit,habit=hooked computes other features"),
    ("key", "failed: KeyError: 'features' (test_strange_weights.py, line"),
])
def test_what_would_fail_or_learn_nothing_later_is_refused_at_once(habit: str, words: str, own: ModuleType) -> None:
    own.habit = Habit
    assert words in refusal(build_method, build(habit), IMAGES)


def test_features_of_inference_mode_are_refused(own: ModuleType) -> None:
    own.net = Unlearned
    recipe = replace(SHORT, backbone="own_networks:net", stem="large")
    assert "cuts the gradient" in refusal(build_method, recipe, IMAGES)


def test_a_network_for_float32_alone_is_named_before_it_trains(own: ModuleType) -> None:
    own.habit = Habit
    assert "choose --set precision=float32" in refusal(build_method, build("single", precision="bfloat16"), IMAGES)
    build_method(build("single"), IMAGES)


def test_what_no_checkpoint_holds_is_noted(own: ModuleType) -> None:
    own.habit = Habit
    with pytest.warns(UserWarning, match=r"changes net\.seen while it trains, which no checkpoint holds"):
        build_method(build("counts"), IMAGES)


def test_a_mistake_in_a_users_network_is_not_one_of_the_weights(own: ModuleType, tmp_path: Path) -> None:
    def fails(channels: int) -> nn.Module:
        raise KeyError("depth")
    own.fails, own.habit = fails, Habit
    torch.save(Plain(3).state_dict(), tmp_path / "weights.pth")
    for name, words in (("fails", "function own_networks:fails failed, called with 3 channels: KeyError: 'depth' (te"),
                        ("habit,habit=key", "own_networks:habit failed: KeyError: 'features' (test_strange_")):
        assert words in refusal(open_encoder, f"own_networks:{name}@{tmp_path / 'weights.pth'}")


@pytest.mark.parametrize(("change", "words"), [
    (lambda net: net.double(), "its parameters are float64 and images are float32: return the network with .float()"),
    (lambda net: net.bfloat16(), "its parameters are bfloat16 and images are float32"),
    (lambda net: type("Masked", (Plain,), dict(forward=lambda self, images, *, mask: images))(3),
     "every other argument needs a default"),
])
def test_what_a_network_needs_is_named(change: Callable[[nn.Module], nn.Module], words: str, own: ModuleType) -> None:
    own.odd = lambda channels: change(Plain(channels))
    said = refusal(build_backbone, BackboneConfig("own_networks:odd", stem="large"))
    assert words in said and "num_features" not in said


def test_train_may_return_nothing(own: ModuleType) -> None:
    quiet = type("Quiet", (Plain,), dict(train=lambda self, mode=True: Plain.train(self, mode) and None))
    own.quiet = lambda channels: quiet(channels)
    build_method(replace(SHORT, backbone="own_networks:quiet", stem="large"), IMAGES)


def test_a_mistake_that_a_step_shows_is_named(own: ModuleType) -> None:
    own.habit = Habit
    state = prepare_training(build("plain"), IMAGES, "cpu")
    state.method.student.backbone.net.habit, state.recipe = "key_in_large_batches", build("key_in_large_batches")
    said = refusal(train_step, state, torch.arange(8), IMAGES.get(torch.arange(8)))
    assert "failed while it was trained: KeyError: 'features' (test_strange_weights.py, line" in said


def test_chance_of_python_and_numpy_depends_on_seed_and_step(own: ModuleType) -> None:
    own.habit, losses = Habit, []
    for number in range(2):
        state = prepare_training(build("chance"), IMAGES, "cpu")
        random.seed(number)  # whatever else draws
        np.random.seed(number)  # noqa: NPY002
        before = random.getstate(), np.random.rand(), np.random.seed(number)  # noqa: NPY002
        losses.append(train_step(state, torch.arange(8), IMAGES.get(torch.arange(8))))
        assert (random.getstate(), np.random.rand()) == before[:2]  # noqa: NPY002
    assert torch.equal(*losses)


class Differentiates(nn.Module):
    "Its features are the gradient of an energy by the images, or come from a mapped function."

    def __init__(self, channels: int, mapped: bool) -> None:
        super().__init__()
        self.mapped, self.layer = mapped, nn.Conv2d(channels, 8, 3, 8, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.mapped:
            values = dict(self.layer.named_parameters())
            called = torch.func.vmap(lambda one: torch.func.functional_call(self.layer, values, (one[None],))[0])
            return called(images).mean((2, 3))
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.layer(images).square().sum(), images, create_graph=self.training)
        return nn.functional.adaptive_avg_pool2d(slope, 2).flatten(1)


@pytest.mark.parametrize("mapped", ["true", "false"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_may_differentiate_and_map(mapped: str, precision: str, own: ModuleType,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    "Also where its convolution learns by products."
    own.inner = Differentiates
    monkeypatch.setattr(convolution, "product_pays", lambda *shapes: True)
    recipe = replace(SHORT, backbone=f"own_networks:inner,mapped={mapped}", stem="large", precision=precision)
    state = prepare_training(recipe, IMAGES, "cpu")
    assert type(state.method.student.backbone.net.layer) is convolution.ProductConv2d
    before = state.method.student.backbone.net.layer.weight.detach().clone()
    assert train_step(state, torch.arange(8), IMAGES.get(torch.arange(8))).isfinite()
    assert not torch.equal(before, state.method.student.backbone.net.layer.weight)


def test_set_takes_no_method_or_network_that_needs_more_than_its_name() -> None:
    recipe = choose_recipe("digits", None)
    bare = replace(recipe, predictor=())
    assert "--set method=byol leaves out what goes with it" in refusal(change_setting, bare, "method=byol")
    assert "use --method byol" in refusal(change_setting, bare, "method=byol")
    chosen = choose_recipe("digits", None, method="byol")
    assert change_setting(chosen, "method=byol") == chosen
    vit = "timm:vit_tiny_patch16_224,depth=1"
    said = refusal(change_setting, recipe, f"backbone={vit}")
    assert "optimizer=adamw" in said and f"use --backbone {vit}" in said
    for name in ("tiny", "resnet18", "torchvision:shufflenet_v2_x0_5"):
        assert change_setting(recipe, f"backbone={name}") == replace(recipe, backbone=name)


class Half(Plain):
    "One of two equal halves learns, or both."

    learns = 0, 1

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.halves = nn.ModuleList([nn.Linear(6, 6, bias=False), nn.Linear(6, 4, bias=False)])
        for number, half in enumerate(self.halves):
            half.requires_grad_(number in self.learns)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.halves[1](self.halves[0](super().forward(images)))


@pytest.mark.parametrize("learned", [(0,), (1,)])  # of another number, and of as many of another shape
def test_a_run_whose_frozen_parameters_changed_is_not_resumed(
        learned: tuple[int, ...], own: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own.half = Half
    recipe = replace(SHORT, backbone="own_networks:half", stem="large")
    monkeypatch.setattr(Half, "learns", learned)
    state = prepare_training(recipe, IMAGES, "cpu")
    train_step(state, torch.arange(8), IMAGES.get(torch.arange(8)))
    save_train_state(state, tmp_path)
    assert restore_train_state(prepare_training(recipe, IMAGES, "cpu"), tmp_path)
    monkeypatch.setattr(Half, "learns", (0, 1) if learned == (0,) else (0,))
    said = refusal(restore_train_state, prepare_training(recipe, IMAGES, "cpu"), tmp_path)
    assert "was written while other parameters learned" in said and "change it back, or begin again" in said


@pytest.fixture(scope="module")
def resnet() -> dict[str, torch.Tensor]:
    return models.resnet18().state_dict()


@pytest.mark.parametrize(("name", "change", "words"), [
    ("conv1.weight", lambda v: v.to("meta"), "without their numbers (meta tensors: conv1.weight)"),
    ("conv1.weight", lambda v: v.sum(), "tensors of shapes that no known network has: conv1.weight ()"),
    ("bn1.running_var", lambda v: -v, "holds variances below 0 in bn1.running_var"),
    ("conv1.weight", lambda v: v.double() * 1e300, "values in conv1.weight that are too large for torch.float32"),
])
def test_numbers_that_cannot_be_weights_are_named(
        name: str, change: Callable, words: str, resnet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(resnet | {name: change(resnet[name])}, tmp_path / "weights.pth")
    assert words in refusal(open_encoder, str(tmp_path / "weights.pth"))


def test_tensors_of_a_transformer_with_other_axes_are_named(tmp_path: Path) -> None:
    state = {"pos_embed": torch.rand(1, 197, 192), "cls_token": torch.rand(1, 1, 192)}
    torch.save(state | {"patch_embed.proj.weight": torch.rand(192)}, tmp_path / "weights.pth")
    assert "no known network has: patch_embed.proj.weight (192,)" in refusal(load_encoder, tmp_path / "weights.pth")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    config, file = BackboneConfig("tiny", width=4), tmp_path / "tiny.safetensors"
    save_encoder(file, {"teacher": Encoder(build_backbone(config), [0.5] * 3, [0.5] * 3)}, config, 16)
    return file


@pytest.mark.parametrize(("change", "words"), [
    ("no JSON", "is damaged, or of a newer isd_nb: it is not JSON (Expecting value"),
    ("[]", "is damaged, or of a newer isd_nb: it must be names and values, not list"),
    ("{}", "its config must be of the kind dict, not NoneType"),
    (lambda header: header.update(extra="a text"), "its extra must be of the kind dict, not str"),
    (lambda header: header["config"].update(width=10 ** 9), "is of a larger network than the file holds"),
    (lambda header: header["config"].update(name="small_resnet", blocks=10 ** 6), "is of a larger network"),
    (lambda header: header["config"].update(width=1.5), "must be whole numbers, not 1.5"),
    (lambda header: header["config"].update(stem="middle"), "unknown stem 'middle'"),
])
def test_what_is_wrong_in_a_header_is_named(change: Callable[[dict], object] | str, words: str, tiny: Path) -> None:
    said = refusal(open_encoder, str(with_header(tiny, change)))
    assert words in said and str(tiny) in said


def test_whole_numbers_are_no_weights_of_an_encoder_file(tiny: Path) -> None:
    header, _, state = read_safetensors(tiny, "")
    save_file({k: v.to(torch.int8) for k, v in state.items()}, tiny, metadata={"isd_nb": json.dumps(header)})
    assert "numbers of another kind than the network computes with: " in refusal(open_encoder, str(tiny))


@pytest.mark.parametrize(("content", "words"), [
    ([1, 2], "holds a list, and weights are tensors by their names"),
    (torch.ones(2), "holds a Tensor, and weights are tensors by their names"),
    ({"model": nn.Linear(2, 3), "epoch": 3}, "holds a whole network under 'model', whose code is not run"),
])
def test_what_lies_in_place_of_weights_is_named(content: object, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert words in refusal(open_encoder, str(tmp_path / "weights.pth"))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_file_of_torchscript_is_not_run(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 3), torch.rand(1, 2)).save(str(tmp_path / "weights.pt"))
    said = refusal(open_encoder, str(tmp_path / "weights.pt"))
    assert "is a network of TorchScript, whose code is not run: save its weights" in said and "weights_only" not in said


def test_weights_for_rgb_are_no_start_for_grey_images(resnet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(resnet, tmp_path / "weights.pth")
    recipe = replace(with_weights(SHORT, str(tmp_path / "weights.pth"), None, 32), init=str(tmp_path / "weights.pth"))
    said = refusal(build_method, recipe, ImageSet(IMAGES.images[:, :1]))
    assert "take RGB (3 channels), and the images to train on are grey (1 channel): store these as RGB" in said


@pytest.mark.parametrize(("images", "takes"), [(3, 13), (1, 13), (13, 3), (2, 1)])
def test_only_grey_and_rgb_are_made_into_each_other(images: int, takes: int) -> None:
    given = ImageSet(torch.zeros(2, images, 8, 8, dtype=torch.uint8))
    assert f"takes images of {takes} channels, and these have {images}" in refusal(with_channels, given, takes)
    assert with_channels(given, images) is given


def test_the_first_at_ends_the_name_of_a_network(resnet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    (tmp_path / "me@work").mkdir()
    torch.save(resnet, tmp_path / "me@work" / "x.pt")
    assert load_encoder(f"torchvision:resnet18@{tmp_path / 'me@work' / 'x.pt'}").config.name == "torchvision:resnet18"
