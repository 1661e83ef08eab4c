"""Networks and weights of others, from the command line to the explorer, on a small folder."""
import copy
import os
import runpy
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close
from torchvision import models
from typer.testing import CliRunner

import isd_nb
from isd_nb.cli.embed import app
from isd_nb.cli.evaluate import command as isd_eval
from isd_nb.cli.explore import command as isd_explore
from isd_nb.cli.train import command as isd_train
from isd_nb.data import ImageSet
from isd_nb.encoders import BackboneConfig, Encoder, SplitBatchNorm, build_backbone, save_encoder, split_batch_norm
from isd_nb.engine.export import export_encoder, to_share
from isd_nb.engine.finish import finish, train_supervised
from isd_nb.engine.runs import read_recipe
from isd_nb.engine.state import (
    check_encoders, prepare_training, restore_train_state, save_encoders, save_train_state, train_step)
from isd_nb.engine.training import fill_queue, train
from isd_nb.errors import InputError
from isd_nb.explore.figures import train_or_go_on
from isd_nb.methods.building import build_method, decays, make_optimizer
from isd_nb.methods.checkpoints import fit_recipe
from isd_nb.methods.choosing import change_setting
from isd_nb.methods.networks import network_line, torchvision_statistics, with_network
from isd_nb.methods.sync_batch_norm import sync_batch_norm
from isd_nb.protocols.storage import Stopped
from isd_nb.recipe import Recipe
from isd_nb.sources.digits import digits
from isd_nb.sources.door import Sets, load_images
from isd_nb.views import STRONG

ROOT = Path(__file__).parent.parent
VIT = "timm:vit_tiny_patch16_224,patch_size=8,depth=2,embed_dim=32,num_heads=2"
CONVNET = "timm:resnet10t,channels=[8,8,16,16]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Forty photographs of two kinds, 40 x 48 pixels."
    place, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for kind in ("dark", "light"):
            (place / split / kind).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 128, (40, 48, 3)) + (kind == "light") * 100
                Image.fromarray(pixels.astype(np.uint8)).save(place / split / kind / f"{i}.png")
    return place


def short(backbone: str, **changes: object) -> Recipe:
    "Six steps of ISD at 32 pixels."
    recipe = Recipe("short", steps=6, batch_size=8, queue_size=16, evaluations=1, projector=(16, 8), predictor=())
    return replace(with_network(replace(recipe, image_size=32), backbone, 40), warmup_steps=2, **changes)


class OfOneSize(nn.Module):
    "Takes images of 8 x 8 pixels alone, and states under some name that it computes 5 features."

    def __init__(self, stated: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 64, 5)
        setattr(self, stated, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # (B, 3, 8, 8) -> (B, 5)
        return self.layer(images.flatten(1))


@pytest.mark.parametrize("stated", ["num_features", "features", "nothing"])  # `features` is what earlier versions read
def test_a_network_of_ones_own_states_how_wide_it_is(stated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = ModuleType("mine")
    mine.net = lambda channels: OfOneSize(stated)
    monkeypatch.setitem(sys.modules, "mine", mine)
    if stated == "nothing":
        with pytest.raises(InputError, match="mine:net cannot take images of 64 x 64 pixels"):
            build_backbone(BackboneConfig("mine:net"))
    else:
        assert build_backbone(BackboneConfig("mine:net", stem="large")).num_features == 5


@pytest.mark.parametrize("backbone", [VIT, "timm:mobilenetv3_small_050", "torchvision:shufflenet_v2_x0_5"])
def test_it_trains_and_resumes_bit_for_bit(backbone: str, folder: Path, tmp_path: Path) -> None:
    images, recipe = load_images(f"folder:{folder}", 32)[0], short(backbone, steps=4, evaluations=2)
    whole = train(recipe, images, tmp_path / "whole", show=False, device="cpu", threads=1).method

    def stop(rows: list) -> None:
        if rows[-1]["step"]:
            os.kill(os.getpid(), 2)
    with pytest.raises(Stopped):
        train(recipe, images, tmp_path / "parts", show=False, device="cpu", threads=1, watch=stop, save_every=0)
    again = train(recipe, images, tmp_path / "parts", show=False, device="cpu", threads=1, resume=True).method
    for (name, value), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def of_one_size(channels: int) -> nn.Module:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * 32 * 32, 8))
    layers.num_features = 8
    return layers


def test_views_smaller_than_the_stored_images_suit_a_network_of_one_size(
        make_module: Callable[..., ModuleType]) -> None:
    make_module("networks_of_one_size", of_one_size=of_one_size)
    images = digits(40, copies=1)[0]
    check_encoders(prepare_training(short("networks_of_one_size:of_one_size", stored_size=40), images, "cpu"))


def dropping(channels: int) -> nn.Module:
    layers = nn.Sequential(nn.Conv2d(channels, 8, 3), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layers.num_features = 8
    return layers


def test_a_queue_is_filled_by_the_seed_of_the_recipe(make_module: Callable[..., ModuleType]) -> None:
    make_module("dropping_networks", dropping=dropping)
    recipe, images, queues = short("dropping_networks:dropping", options={"prefill": True}), digits(32, copies=1)[0], []
    for seed in range(2):
        torch.manual_seed(seed)
        state, before = prepare_training(recipe, images, "cpu"), torch.get_rng_state()
        fill_queue(state, 0)
        queues.append(state.method.queue.anchors.clone())
        assert torch.equal(torch.get_rng_state(), before)
    assert_close(*queues, rtol=0, atol=0)


def test_from_the_command_line_to_the_explorer(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    data, settings = f"folder:{folder}", ["queue_size=16", "projector=[16,8]", "predictor=[]", "evaluations=1"]
    how = dict(data=data, steps=2, batch_size=8, supervised=False, figures=False, processes=1, device="cpu",
               change=settings)
    isd_train(backbone=VIT, out=tmp_path / "first", **how)
    assert "is trained on images of about 40 pixels, at 32 x 32; adamw" in capsys.readouterr().out
    isd_train(init=str(tmp_path / "first"), out=tmp_path / "second", **how)
    first, second = (isd_nb.load_encoder(tmp_path / name) for name in ("first", "second"))
    assert first.config == second.config
    assert "given weights" in capsys.readouterr().out
    isd_eval(tmp_path / "first", encoder="teacher", device="cpu")
    isd_eval(None, encoder=str(tmp_path / "second"), data=data, device="cpu")
    assert "20-NN" in capsys.readouterr().out
    monkeypatch.setattr("isd_nb.explore.gallery.layout", lambda features, start=None: np.asarray(features)[:, :2])
    isd_explore(None, encoder=[str(tmp_path / "second"), "timm:mobilenetv3_small_050,pretrained=false"], data=data,
                size=32, html=tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 10_000
    call = [str(tmp_path / "second"), "--data", data, "--out", str(tmp_path / "f.npy"), "--device", "cpu"]
    said = CliRunner().invoke(app(), call)
    assert said.exit_code == 0 and np.load(tmp_path / "f.npy").shape == (40, 32)


def test_a_network_with_a_tag_resumes_is_evaluated_and_shared(folder: Path, tmp_path: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    "The tag names weights that are not asked for; what is shared needs no more than its file."
    data, how = f"folder:{folder}", dict(show=False, device="cpu", threads=1)
    network = "timm:resnet18.a1_in1k,channels=[8,8,16,16]"
    recipe = replace(short(network, steps=2, batch_size=4, evaluations=2, data=data), image_size=16)
    images = load_images(data, 16)[0]
    whole = train(recipe, images, tmp_path / "whole", **how).method

    def stop(rows: list) -> None:
        if rows[-1]["step"]:
            os.kill(os.getpid(), 2)
    with pytest.raises(Stopped):
        train(recipe, images, run := tmp_path / "run", watch=stop, **how)
    again = train(recipe, images, run, resume=True, **how).method
    assert all(map(torch.equal, whole.state_dict().values(), again.state_dict().values()))
    save_encoders(run / "encoder.safetensors", again, recipe, images)
    weights, card = to_share(run, tmp_path / "shared")
    assert network in card.read_text() and str(folder) not in card.read_text()
    pictures = torch.rand(2, 3, 16, 16)
    assert_close(isd_nb.load_encoder(weights)(pictures), isd_nb.load_encoder(run)(pictures))
    isd_eval(None, encoder=str(weights), data=data, device="cpu")
    assert "20-NN" in capsys.readouterr().out


def test_student_and_teacher_start_from_given_weights(folder: Path, tmp_path: Path) -> None:
    images = load_images(f"folder:{folder}", 32)[0]
    given = build_method(short("timm:mobilenetv3_small_050", seed=3), images).student
    torch.save(given.backbone.net.state_dict(), tmp_path / "weights.pth")
    recipe = short("timm:mobilenetv3_small_050", init=str(tmp_path / "weights.pth"))
    method = build_method(replace(recipe, stem="large"), images)
    for encoder in (method.student, method.teacher.module):
        assert_close(dict(encoder.backbone.state_dict()), dict(given.backbone.state_dict()))
    with pytest.raises(InputError, match="does not match"):
        build_method(replace(short(CONVNET), init=str(tmp_path / "weights.pth"), stem="large"), images)


@pytest.mark.parametrize("changes", [{}, dict(batch_norm_splits=2), dict(batch_norm="sync")])
def test_what_is_trained_is_the_network_given(changes: dict[str, object], folder: Path, tmp_path: Path) -> None:
    "Its batch norms are exchanged for training, and timm's hold the activations."
    images = load_images(f"folder:{folder}", 32)[0]
    given = build_backbone(BackboneConfig("timm:mobilenetv3_small_050", stem="large"))
    torch.save(given.net.state_dict(), tmp_path / "weights.pth")
    recipe = short("timm:mobilenetv3_small_050", init=str(tmp_path / "weights.pth"), stem="large", **changes)
    trained, pictures = build_method(recipe, images).student.backbone, torch.rand(4, 3, 32, 32)
    assert_close(trained.eval()(pictures), given.eval()(pictures))


@pytest.mark.parametrize(("call", "words"), [
    (lambda: isd_eval(None, device="cpu"), "name what to evaluate"),
    (lambda: isd_explore(None), "name what to explore"),
    (lambda: isd_explore(None, encoder=["timm:resnet18"]), "--encoder SOURCE --data SPEC"),
    (lambda: isd_train(backbone="timm:resnet_18", device="cpu"), "did you mean resnet18"),
    (lambda: isd_train(init="nowhere.pth", device="cpu"), "nowhere.pth")])
def test_wrong_calls_get_one_sentence(call: object, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call()
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) == 1


def test_the_plain_loop_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "examples" / "plain_loop.py"
    assert len(path.read_text().splitlines()) < 40
    few = lambda **how: tuple(images.subset(range(200)) for images in digits(**how))  # noqa: E731
    monkeypatch.setattr("isd_nb.sources.digits.digits", few)
    monkeypatch.setattr(sys, "argv", [str(path), "3"])
    with torch.random.fork_rng():
        runpy.run_path(str(path), run_name="__main__")
    assert "step 3: loss" in (printed := capsys.readouterr().out) and "20-NN" in printed


class Odd(nn.Module):
    "Convolution, batch norm and mean; keeps something that no state_dict holds, or draws by chance, or has a hook."

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.kind, self.layer, self.norm = kind, nn.Conv2d(channels, 6, 3, 2), nn.BatchNorm2d(6)
        self.register_buffer("scale", torch.rand(6) if kind == "hidden" else torch.ones(6), persistent=False)
        if kind == "lock":
            self.lock = threading.Lock()
        if kind == "hook":
            self.norm.register_forward_hook(lambda module, inputs, output: output.tanh())
        self.requires_grad_(kind != "frozen")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.norm(self.layer(images)).mean((2, 3)) * self.scale
        found = found / 0 * 0 if self.kind == "nan" else found.half() if self.kind == "half" else found
        if self.kind == "tuple" and self.training:
            return found, images
        by_chance = self.kind == "always" or (self.training and self.kind == "chance")
        return nn.functional.dropout(found, 0.5, by_chance)


def odd(channels: int, kind: str) -> nn.Module:
    return Odd(channels, kind)


@pytest.fixture
def own(make_module: Callable[..., ModuleType]) -> None:
    "These networks as a module of the user's."
    make_module("odd_networks", odd=odd)


def test_what_no_file_can_hold_is_refused_before_training(own: None) -> None:
    images = ImageSet(torch.zeros(8, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(InputError, match="persistent buffers"):
        build_method(short("odd_networks:odd,kind=hidden"), images)


def test_a_network_is_copied_and_not_random_where_it_is_evaluated(own: None) -> None:
    images = ImageSet(torch.zeros(8, 3, 32, 32, dtype=torch.uint8))
    random, before = short("odd_networks:odd,kind=always"), torch.get_rng_state()
    with pytest.raises(InputError, match="same images each time, in evaluation mode: let nothing be random there"):
        build_method(random, images)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(InputError, match="keep no locks, generators, open files"):
        build_method(short("odd_networks:odd,kind=lock"), images)


def test_a_hook_on_a_batch_norm_stays(own: None) -> None:
    net = build_backbone(BackboneConfig("odd_networks:odd,kind=hook", stem="large")).train()
    images = torch.rand(4, 3, 32, 32)
    expected = net(images)
    assert_close(split_batch_norm(net, 1)(images), expected)
    with pytest.raises(InputError, match="cannot be split"):
        split_batch_norm(net, 2)


def test_dropout_draws_by_seed_and_step(own: None) -> None:
    images = ImageSet(torch.randint(256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8))
    losses = []
    for _ in range(2):
        state = prepare_training(replace(short("odd_networks:odd,kind=chance"), precision="float32"), images, "cpu")
        torch.rand(3)  # whatever else draws
        before = torch.get_rng_state()
        losses.append(train_step(state, torch.arange(8), images.get(torch.arange(8))))
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*losses)


def test_given_weights_keep_their_stride(tmp_path: Path) -> None:
    images, config = ImageSet(torch.zeros(8, 3, 32, 32, dtype=torch.uint8)), BackboneConfig("tiny", 3, 4, "large")
    file = tmp_path / "encoder.safetensors"
    save_encoder(file, {"student": Encoder(build_backbone(config), [0.5] * 3, [0.5] * 3)}, config, 32)
    recipe = Recipe("given", steps=1, batch_size=8, queue_size=16, width=4, image_size=32, init=str(file))
    with pytest.raises(InputError, match="--set stem=large"):
        build_method(replace(recipe, stem="small"), images)
    build_method(replace(recipe, stem="large"), images)


def test_weights_of_torchvision_have_their_own_normalisation() -> None:
    for name in ("efficientnet_v2_l", "inception_v3", "googlenet"):
        assert torchvision_statistics(name, {}) == ([0.5] * 3, [0.5] * 3)
    assert torchvision_statistics("resnet18", {}) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_the_stem_is_that_of_the_weights_in_python_and_in_the_command(tmp_path: Path) -> None:
    "A first convolution of 3 x 3 fits with either stride."
    given = build_backbone(BackboneConfig("timm:mobilenetv3_small_050", stem="large"))
    file, images = tmp_path / "weights.pth", ImageSet(torch.zeros(8, 3, 32, 32, dtype=torch.uint8))
    torch.save(given.net.state_dict(), file)
    base = Recipe("short", steps=1, batch_size=8, queue_size=16, projector=(8, 4), predictor=(), image_size=32)
    by_command = fit_recipe(base, "timm:mobilenetv3_small_050", str(file), 32)
    by_hand = replace(base, backbone="timm:mobilenetv3_small_050", init=str(file))
    assert by_command.stem == "large" and by_hand.stem == "small"
    build_method(by_command, images)
    with pytest.raises(InputError, match="--set stem=large"):
        build_method(by_hand, images)
    net = models.resnet18()
    net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    torch.save(net.state_dict(), file)
    assert fit_recipe(base, "resnet18", str(file), 32).stem == "small"  # a small stem is seen in the weights


class Twice(nn.Module):
    "One batch norm under three names, two of them in one module."

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.again, self.inner = self.norm, nn.Sequential(nn.Conv2d(4, 4, 3), self.norm)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.again(self.inner(self.norm(self.first(images)))).mean((2, 3))


@pytest.mark.parametrize("change", [lambda net: split_batch_norm(net, 2), sync_batch_norm])
def test_a_batch_norm_under_several_names_is_replaced_once(change: Callable[[nn.Module], nn.Module]) -> None:
    plain, images = Twice(), torch.rand(8, 3, 12, 12)
    names = list(plain.state_dict())
    changed = change(copy.deepcopy(plain))
    assert changed.norm is changed.again is changed.inner[1] and type(changed.norm) is not nn.BatchNorm2d
    assert list(changed.state_dict()) == names and len(list(changed.parameters())) == len(list(plain.parameters()))
    if isinstance(changed.norm, SplitBatchNorm):  # as two processes with half of the images each
        assert_close(changed(images), torch.cat([copy.deepcopy(plain)(half) for half in images.chunk(2)]))
        assert changed.norm.num_batches_tracked == 3
    else:
        assert_close(changed(images), plain(images))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_network_with_classifiers_on_its_way_trains(name: str) -> None:
    net = build_backbone(BackboneConfig(f"torchvision:{name},init_weights=false", stem="large")).train()
    found = net(torch.rand(2, 3, 80, 80))
    assert found.shape == (2, net.num_features) and not [k for k in net.state_dict() if "aux" in k.lower()]


def test_what_does_not_decay() -> None:
    net = build_backbone(BackboneConfig(VIT, stem="large"))
    net.head = torch.nn.utils.parametrizations.weight_norm(nn.Linear(32, 8))
    method, recipe = nn.ModuleDict(dict(student=net)), Recipe("short", steps=1, optimizer="adamw", weight_decay=0.05)
    decayed, free = ([id(p) for p in group["params"]] for group in make_optimizer(recipe, method).param_groups)
    names = {id(p): name for name, p in net.named_parameters()}
    kept = {names[i] for i in free if names[i].split(".")[-1] not in ("bias",) and "norm" not in names[i]}
    assert kept == {"net.cls_token", "net.pos_embed", "head.parametrizations.weight.original0"}
    assert {"net.patch_embed.proj.weight", "head.parametrizations.weight.original1"} <= {names[i] for i in decayed}
    assert torchvision_free("swin_t") == {"relative_position_bias_table"}
    for backbone in ("resnet18", "tiny", "timm:mobilenetv3_small_050"):  # as it was: by the number of axes
        method = nn.ModuleDict(dict(student=build_backbone(BackboneConfig(backbone))))
        new, old = (make_optimizer(recipe, method, tables).param_groups for tables in (False, True))
        assert [[id(p) for p in g["params"]] for g in new] == [[id(p) for p in g["params"]] for g in old]


def torchvision_free(name: str) -> set[str]:
    "Last words of the parameters with two axes of a network of torchvision that do not decay."
    with torch.device("meta"):
        net = models.get_model(name, weights=None)
    return {k.split(".")[-1] for k, p in net.named_parameters() if p.ndim > 1 and not decays(k, p)}


def test_a_run_from_before_goes_on_with_its_own_weight_decay(folder: Path, tmp_path: Path) -> None:
    images, recipe = load_images(f"folder:{folder}", 32)[0], short(VIT)
    before = prepare_training(recipe, images, "cpu")
    before.optimizer = make_optimizer(recipe, before.method, tables=True)
    train_step(before, torch.arange(8), images.get(torch.arange(8)))
    save_train_state(before, tmp_path)
    after = prepare_training(recipe, images, "cpu")
    assert restore_train_state(after, tmp_path)
    for state in (before, after):
        train_step(state, torch.arange(8, 16), images.get(torch.arange(8, 16)))
    for (name, value), other in zip(before.method.state_dict().items(), after.method.state_dict().values()):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("channels", [2, 5])
def test_any_number_of_channels_is_trained(channels: int, tmp_path: Path) -> None:
    "Saturation, hue and grey are left out where there is no red, green and blue."
    pixels = torch.randint(256, (16, channels, 20, 20), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    recipe = replace(short(CONVNET, steps=1), views=STRONG, batch_norm_splits=1)
    trained = train(recipe, ImageSet(pixels), tmp_path, show=False, device="cpu").method
    assert trained.student(pixels / 255).shape == (16, 8)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ("timm:vit_tiny_patch16_224,depth=1,embed_dim=32,num_heads=3", "cannot be built with these options: dim"),
        ("timm:swin_tiny_patch4_window7_224,depths=[1,1],embed_dim=24", "made for 224 x 224: --set image_size=224"),
        ("odd_networks:odd,kind=nan", "not finite"),
        ("odd_networks:odd,kind=frozen", "no parameter of .* learns"),
        ("odd_networks:odd,kind=tuple", "must return a tensor of features, not tuple"),
        ("odd_networks:odd,kind=half", "must compute float32 features, not float16"),
    ],
)
def test_what_cannot_be_trained_is_refused(backbone: str, words: str, own: None) -> None:
    images = ImageSet(torch.zeros(8, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(InputError, match=words) as refused:
        method = build_method(replace(short(CONVNET), backbone=backbone, stem="large"), images)
        method.train().student(torch.rand(4, 3, 32, 32))
    assert "\n" not in str(refused.value)


def test_images_of_another_size_are_refused_before_training(tmp_path: Path) -> None:
    images = ImageSet(torch.zeros(16, 3, 20, 24, dtype=torch.uint8), torch.arange(16) % 2, classes=("a", "b"))
    with pytest.raises(InputError, match="make them 32 x 32"):
        isd_nb.train(short(VIT), images, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


class Flat(nn.Module):
    "As many features as an image has places; `of_size` adds a layer that fits one size, `inside` something odd."

    def __init__(self, channels: int, of_size: int = 0, inside: str = "") -> None:
        super().__init__()
        self.inside, self.first = inside, nn.Conv2d(channels, 4, 3, 4, 1)
        self.last = nn.Linear(4 * (of_size // 4) ** 2, 10) if of_size else nn.Identity()
        self.volume = nn.Conv3d(1, 4, (4, 1, 1)) if inside == "volume" else nn.Identity()
        if of_size and inside != "silent":
            self.num_features = 10

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.inside == "writes":
            images.mul_(2).sub_(1)
        found = self.first(images)
        if self.inside == "volume":
            found = self.volume(found[:, None])[:, :, 0]
        return self.last(found.mean((2, 3)) if self.inside in ("writes", "volume") else found.flatten(1))


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    "Such networks as a module of the user's."
    module = ModuleType("flat_networks")
    module.flat = Flat  # type: ignore[attr-defined]
    module.traced = lambda channels: torch.jit.trace(  # type: ignore[attr-defined]
        nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.rand(2, channels, 8, 8))
    monkeypatch.setitem(sys.modules, "flat_networks", module)


@pytest.mark.parametrize(("backbone", "stem", "words"), [
    ("flat_networks:flat", "large", "makes 256 features of an image of 32 x 32 pixels, but 1024 of one of 64 x 64"),
    ("flat_networks:flat,of_size=32,inside=silent", "large", "64 x 64 pixels .*states how many features"),
    ("flat_networks:flat,of_size=32", "small", "which a small stem has changed: --set stem=large"),
    ("flat_networks:traced", "large", "TorchScript"),
    ("timm:resnet18,global_pool=", "large", r"not a tensor of shape \(2, 512, 1, 1\)$"),  # no size would help
    ("timm:resnet18,features_only=true", "large", "options features_only does not state how many features"),
])
def test_what_is_wrong_with_a_network_is_said(backbone: str, stem: str, words: str, flat: None) -> None:
    images = ImageSet(torch.zeros(8, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(InputError, match=words):
        build_method(replace(short(CONVNET), backbone=backbone, stem=stem), images)


@pytest.mark.parametrize("backbone", ["flat_networks:flat,inside=writes", "flat_networks:flat,inside=volume"])
def test_a_network_may_write_into_its_images_and_hold_kernels_of_volumes(backbone: str, flat: None) -> None:
    images = ImageSet(torch.randint(256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8))
    state = prepare_training(replace(short(CONVNET), backbone=backbone, stem="large"), images, "cpu")
    assert train_step(state, torch.arange(8), images.images).isfinite()
    kernel = state.method.student.backbone.net.first.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)


class Turns(nn.Module):
    "Computes another thing of dark images: no exporter can follow it."

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.layer(images).mean((2, 3))
        return found if images[:, :, 0, 0].sum() * 1e3 % 2 > 1 else -found


def test_a_network_that_cannot_be_exported_gets_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("turning")
    module.turns = Turns  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "turning", module)
    torch.save(Turns(3).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"turning:turns cannot be written as .pt2 \(.*\): try "):
        export_encoder(f"turning:turns@{tmp_path / 'weights.pth'}", tmp_path / "out.pt2", 16)
    with pytest.raises(InputError, match=r"cannot be written as .pt: loaded again, its features differ by"):
        export_encoder(f"turning:turns@{tmp_path / 'weights.pth'}", tmp_path / "out.pt", 16)
    assert not list(tmp_path.glob("out.*"))


def test_a_network_that_was_changed_is_not_resumed(flat: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ImageSet(torch.zeros(8, 3, 32, 32, dtype=torch.uint8))
    recipe = replace(short(CONVNET), backbone="flat_networks:flat,inside=writes", stem="large")
    save_train_state(prepare_training(recipe, images, "cpu"), tmp_path)
    module = sys.modules["flat_networks"]
    monkeypatch.setattr(module, "flat", lambda channels, inside: nn.Sequential(Flat(channels, 0, inside)))
    with pytest.raises(InputError, match=r"inside=writes or isd is not what it was .* change it back"):
        restore_train_state(prepare_training(recipe, images, "cpu"), tmp_path)


class Doubles(nn.Module):
    "Computes in doubles inside."

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, 4, 3).double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.double()).mean((2, 3)).float()


def test_a_network_with_doubles_inside_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, config = ModuleType("doubling"), BackboneConfig("doubling:doubles", stem="large")
    module.doubles = Doubles  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "doubling", module)
    file = tmp_path / "encoder.safetensors"
    save_encoder(file, {"teacher": Encoder(build_backbone(config), [0.5] * 3, [0.5] * 3)}, config, 16)
    assert export_encoder(f"doubling:doubles@{file}", tmp_path / "out.pt2") < 1e-5


class Standardised(nn.Conv2d):
    "A convolution that standardises its kernels, as published code does: `view` needs them in the plain order."

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = self.weight.view(self.weight.size(0), -1)
        flat = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)
        return self._conv_forward(images, flat.view_as(self.weight), self.bias)


class Held(nn.Module):
    "Of several kinds: its first convolution, the one that it holds first, rows by `view`, buffers assigned anew."

    def __init__(self, channels: int, kind: str = "plain") -> None:
        super().__init__()
        self.kind, inner = kind, nn.Conv2d(6, 4, 3, 2, 1)
        if kind == "inner":
            self.inner = inner
        make, groups = Standardised if kind == "standardised" else nn.Conv2d, channels if kind == "groups" else 1
        self.first = make(channels, 6, 5, 2, 2, groups=groups).requires_grad_(kind != "frozen")
        self.inner, self.norm, self.pool = inner, nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2)
        self.register_buffer("grid", torch.zeros(2, 2), persistent=kind == "kept")
        self.register_buffer("three", torch.zeros(1).expand(3), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.norm(self.inner(self.first(images).relu()))
        if self.kind == "buffers" or (self.kind == "kept" and self.training):
            self.grid = torch.linspace(0, 1, found[0, 0].numel()).view(found.shape[2:])
            self.three = torch.arange(3.0)
            found = found + self.grid
        found = self.pool(found)
        return found.view(found.size(0), -1) if self.kind == "rows" else found.flatten(1)


def grey_alone(channels: int) -> nn.Module:
    "Takes grey images alone."
    assert channels == 1
    return Held(channels)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    "These networks as a module of the user's."
    module = ModuleType("held_networks")
    module.held, module.grey = Held, grey_alone  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "held_networks", module)


DRAWN = torch.randint(256, (40, 3, 20, 20), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
FEW = ImageSet(DRAWN, torch.arange(40) % 2, classes=("a", "b"))
LITTLE = Recipe("little", steps=2, batch_size=8, queue_size=16, evaluations=1, image_size=20, projector=(16, 8),
                predictor=(), warmup_steps=0)


@pytest.mark.parametrize("kind", ["frozen", "groups", "inner", "rows", "standardised", "buffers"])
def test_a_network_of_ones_own_is_trained_as_it_is(kind: str, held: None, tmp_path: Path) -> None:
    "From a recipe whose stem is small: no layer is exchanged, and what `view` or new buffers do in it is no obstacle."
    recipe, how = replace(LITTLE, backbone=f"held_networks:held,kind={kind}"), dict(device="cpu", threads=1)
    assert recipe.stem == "small"
    student = isd_nb.train(recipe, FEW, tmp_path / "run", **how).encoders["student"]
    net = isd_nb.load_encoder(tmp_path / "run").backbone.net
    one, other = ({k: v.shape for k, v in n.state_dict().items()} for n in (net, Held(3, kind)))
    assert one == other and type(net.first) is type(Held(3, kind).first)
    if kind == "frozen":
        begun = build_method(replace(recipe, stem="large"), FEW).student.backbone.net
        assert torch.equal(net.first.weight, begun.first.weight) and not begun.first.weight.requires_grad
    assert isd_nb.evaluation.embed(student, FEW).shape == (40, 16)
    kernel = prepare_training(replace(recipe, stem="large"), FEW, "cpu").method.student.backbone.net.inner.weight
    assert kernel.is_contiguous() == (kind in ("rows", "standardised"))  # else channels last, which is faster
    isd_nb.train(replace(recipe, steps=3), FEW, tmp_path / "run", resume=True, **how)


def test_a_stem_that_is_asked_for_is_made_or_refused(held: None, tmp_path: Path) -> None:
    for kind, words in (("frozen", "begins with a Conv2d, and"), ("groups", "begins with a Conv2d, and"),
                        ("standardised", "begins with a Standardised, and"), ("inner", "holds first")):
        with pytest.raises(InputError, match=words):
            change_setting(with_network(LITTLE, f"held_networks:held,kind={kind}"), "stem=small")
    recipe = change_setting(with_network(LITTLE, "held_networks:held"), "stem=small")
    assert recipe.stem == "small" and change_setting(LITTLE, "backbone=held_networks:held").stem == "large"
    named = replace(LITTLE, backbone="held_networks:held,stem_padding=1")  # the way in Python
    isd_nb.train(named, FEW, tmp_path / "run", device="cpu", threads=1)
    first = isd_nb.load_encoder(tmp_path / "run").backbone.net.first
    assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))


def test_a_run_whose_first_layer_was_replaced_goes_on_and_is_read(held: None, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    "As earlier versions did with every network of the user's."
    recipe, how = replace(LITTLE, backbone="held_networks:held,kind=frozen"), dict(device="cpu", threads=1)
    with monkeypatch.context() as before:
        before.setattr("isd_nb.engine.runs.with_own_stem", lambda recipe: recipe)
        isd_nb.train(recipe, FEW, tmp_path, **how)
    left = isd_nb.train(replace(recipe, steps=3), FEW, tmp_path, resume=True, **how).encoders["teacher"]
    read = isd_nb.load_encoder(tmp_path)
    assert read.config.stem == "small" and read.backbone.net.first.kernel_size == (3, 3)
    assert_close(read(FEW.images / 255), left(FEW.images / 255))


def test_a_notebook_for_gpus_leaves_a_network_of_ones_own_as_it_is(held: None, tmp_path: Path) -> None:
    recipe, sets, out = replace(LITTLE, backbone="held_networks:held"), Sets(FEW, FEW, FEW), tmp_path / "run"
    for _ in range(2):  # and goes on with it
        left = train_or_go_on(recipe, sets, out, show=False)
        assert left.method.student.backbone.net.first.kernel_size == (5, 5)
    encoders = finish(recipe, sets, left, out, steps=10).encoders  # with the recipe as it was given
    assert encoders["student"].config.stem == read_recipe(out).stem == "large"
    for resume, stem in ((False, "small"), (True, "large")):
        assert train_supervised(replace(recipe, stem=stem), FEW, out, resume, "cpu", False, threads=1)
    assert read_recipe(out / "supervised").stem == "large"


def test_a_small_stem_that_the_command_was_given_is_trained(held: None, tmp_path: Path) -> None:
    recipe = change_setting(with_network(LITTLE, "held_networks:held"), "stem=small")
    images, how = FEW, dict(device="cpu", show=False, threads=1)
    first = train(recipe, images, tmp_path, **how).method.student.backbone.net.first
    assert first.kernel_size == (3, 3) and read_recipe(tmp_path).stem == "small"
    left = train(recipe, images, tmp_path, resume=True, **how)  # which states nothing else
    assert left.method.student.backbone.net.first.kernel_size == (3, 3)
    assert train_supervised(recipe, images, tmp_path, False, "cpu", False, threads=1)
    assert read_recipe(tmp_path / "supervised").stem == "small"
    for go_on in (train, isd_nb.train):
        with pytest.raises(InputError, match="changed from stem 'small' to 'large'"):
            go_on(replace(recipe, stem="large"), images, tmp_path, resume=True, **how)


def test_a_first_layer_that_does_more_than_convolve_stays() -> None:
    for name in ("resnetv2_50x1_bit", "nf_resnet26", "resnet18", "tf_efficientnet_lite0"):
        recipe, stem = with_network(LITTLE, f"timm:{name}", 40), "large" if "_bit" in name or "nf_" in name else "small"
        assert recipe.stem == stem and ("stem as it is" in network_line(recipe, 40)) == (stem == "large")
    with pytest.raises(InputError, match="begins with a ScaledStdConv2d, and a small stem"):
        change_setting(with_network(LITTLE, "timm:nf_resnet26", 40), "stem=small")


def test_weights_of_ones_own_network_are_read_into_it_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    "Names and shapes are those of a ResNet with a small stem; the stride is another one."
    def strided(channels: int) -> nn.Module:
        net = models.resnet18()
        net.conv1, net.fc = nn.Conv2d(channels, 64, 3, 2, 1, bias=False), nn.Identity()
        return net
    module = ModuleType("strided_networks")
    module.net = strided  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "strided_networks", module)
    torch.save((given := strided(3).eval()).state_dict(), tmp_path / "weights.pth")
    read = isd_nb.load_encoder(f"strided_networks:net@{tmp_path / 'weights.pth'}")
    assert read.config.stem == "large"
    mean, std = read.mean.view(1, 3, 1, 1), read.std.view(1, 3, 1, 1)
    assert_close(read(FEW.images / 255), given((FEW.images / 255 - mean) / std).detach())


def test_a_function_may_take_grey_images_alone(held: None, tmp_path: Path) -> None:
    grey = ImageSet(FEW.images[:, :1].contiguous(), FEW.labels, classes=("a", "b"))
    recipe = with_network(LITTLE, "held_networks:grey", 20)
    isd_nb.train(recipe, grey, tmp_path / "run", device="cpu", threads=1)
    torch.save(grey_alone(1).state_dict(), tmp_path / "weights.pth")
    assert len(isd_nb.load_encoder(f"held_networks:grey@{tmp_path / 'weights.pth'}").mean) == 1
    with pytest.raises(InputError, match="cannot be imported"):
        with_network(LITTLE, "held_networks:none", 20)


def test_a_function_that_fails_is_called_for_colour_and_for_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    "A download that fails is not tried for all numbers of channels; the first error is the one that is seen."
    def failing(channels: int) -> nn.Module:
        seen.append(channels)
        raise FileNotFoundError(f"no weights, try {len(seen)}")
    module, seen = ModuleType("failing_networks"), list[int]()
    module.net = failing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "failing_networks", module)
    with pytest.raises(FileNotFoundError, match="no weights, try 1"):
        with_network(LITTLE, "failing_networks:net", 20)
    assert seen == [3, 1]


def test_a_network_is_built_once_to_choose_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    built = list[BackboneConfig]()
    monkeypatch.setattr("isd_nb.methods.networks.build_backbone",
                        lambda config: built.append(config) or build_backbone(config))  # type: ignore[func-returns-value]
    for count, name in enumerate(("timm:resnet18", "timm:nf_resnet26", "timm:vit_tiny_patch16_224,depth=1"), 1):
        assert (with_network(LITTLE, name, 40).stem == "small") == (count == 1) and len(built) == count


def test_a_buffer_that_a_file_holds_keeps_its_shape(held: None, tmp_path: Path) -> None:
    words = r"'backbone.net.grid' anew, of shape \(5, 5\) and not \(2, 2\).*persistent=False"
    with pytest.raises(InputError, match=words):
        isd_nb.train(replace(LITTLE, backbone="held_networks:held,kind=kept"), FEW, tmp_path / "run", device="cpu")


def test_a_network_for_images_that_are_not_square() -> None:
    recipe = with_network(LITTLE, "timm:vit_tiny_patch16_224,img_size=[32,48],patch_size=8,depth=1", 40)
    assert (recipe.image_size, recipe.stem) == (32, "large")
    with pytest.raises(InputError, match="a height and a width"):
        with_network(LITTLE, "timm:vit_tiny_patch16_224,img_size=wide", 40)
