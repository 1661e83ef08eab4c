"""What only other machines have: containers, many cores, several GPUs; and what the engine keeps for the next use."""
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from isd_nb.data import ImageSet
from isd_nb.encoders import Encoder, TinyNet
from isd_nb.embedding import AtWork, embed, embed_all, evaluating
from isd_nb.engine import finish as last
from isd_nb.engine.embedding import Work, compute, start_or_go_on
from isd_nb.engine.estimate import dry_run
from isd_nb.engine.launch import with_threads
from isd_nb.engine.training import train
from isd_nb.errors import InputError
from isd_nb.kernels.devices import limit_of_container, part_ways
from isd_nb.methods.building import decays, make_optimizer
from isd_nb.methods.checkpoints import open_encoder
from isd_nb.methods.networks import with_network
from isd_nb.protocols import scorer
from isd_nb.protocols.fine_tuning import FINETUNE, LINEAR, Tuning, fit_classifier
from isd_nb.protocols.scorer import features_of, gathered, kept_at, memory_need, score_encoders
from isd_nb.protocols.storage import load_checkpoint, save_checkpoint
from isd_nb.recipe import Recipe, crops_only, learning_rate, recipes, short_of_warmup
from isd_nb.sources.batches import seeded
from isd_nb.sources.datasets import TransformViews
from isd_nb.sources.digits import digits
from isd_nb.sources.door import Sets
from conftest import SMALL
from launching import FORKED, Launched, finish

GIB = 1 << 30
LITTLE = Recipe("little", width=4, batch_size=16, queue_size=32, projector=(8,), predictor=(8,), evaluations=1)


@pytest.mark.parametrize(
    ("stat", "free"),
    [
        (f"anon {4 * GIB}\nfile {28 * GIB}\ninactive_file {25 * GIB}\nactive_file {3 * GIB}\n", 28 * GIB),
        (f"anon {32 * GIB}\ninactive_file 0\nactive_file 0\n", 0),
        ("inactive_file", 0),  # not as Linux writes it
        (None, 0),
    ],
)
def test_files_in_memory_do_not_fill_a_container(tmp_path: Path, stat: str | None, free: int) -> None:
    for name in ("memory.max", "memory.current"):
        (tmp_path / name).write_text(f"{32 * GIB}\n")
    if stat is not None:
        (tmp_path / "memory.stat").write_text(stat)
    assert limit_of_container(tmp_path) == free
    (tmp_path / "memory.max").write_text("max\n")
    assert limit_of_container(tmp_path) == 1 << 62


MANY_CORES = """
import os, warnings
import psutil, torch
from isd_nb.engine.state import start_processes

del os.environ["OMP_NUM_THREADS"]
psutil.cpu_count = lambda logical=True: 64
torch.set_num_threads(3)
with warnings.catch_warnings(record=True) as noted:
    warnings.simplefilter("always")
    processes = start_processes("cpu", None, None)
assert processes.num_processes == 2
assert torch.get_num_threads() == 3, torch.get_num_threads()
assert "OMP_NUM_THREADS" not in os.environ and not [w for w in noted if "OMP_NUM_THREADS" in str(w.message)]
processes.wait_for_everyone()  # the first holds what the other connects to
"""


def test_processes_keep_their_share_of_threads(start: Callable[..., Launched], tmp_path: Path) -> None:
    (script := tmp_path / "many_cores.py").write_text(MANY_CORES)
    finish(start(script, processes=2))


def test_a_share_of_threads_is_of_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = torch.get_num_threads()
    monkeypatch.setattr("isd_nb.engine.launch.cores", lambda: 4)  # a container's quota, which PyTorch does not know
    try:
        for threads, processes, share in ((8, 1, 4), (8, 2, 2), (8, 8, 1), (2, 1, 2)):
            torch.set_num_threads(threads)
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
            with with_threads():
                assert torch.get_num_threads() == share
            with with_threads(7):
                assert torch.get_num_threads() == 7
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(usual)


def greys(count: int) -> ImageSet:
    "Images of 16 pixels that take a moment, of two classes."
    shades = torch.arange(count).reshape(-1, 1, 1, 1).to(torch.uint8)
    return ImageSet(shades.expand(-1, 1, 16, 16), torch.arange(count) % 2)


def test_the_warmup_that_we_choose_fits_the_run() -> None:
    vit = "timm:vit_tiny_patch16_224,img_size=32,patch_size=8,depth=1"
    base = recipes["cifar10_small"]
    for steps, warmup in ((450, 45), (20_000, 500), (None, 500)):
        changed = replace(base, epochs=base.epochs if steps is None else None, steps=steps)
        assert with_network(changed, vit, 32).warmup_steps == warmup
        assert with_network(replace(changed, warmup_steps=7000), vit, 32).warmup_steps == 7000  # it was chosen


def test_a_run_that_ends_before_its_warmup_states_it(tmp_path: Path) -> None:
    images, recipe = greys(32), replace(LITTLE, steps=4, warmup_steps=8)
    top = max(learning_rate(recipe, step, 4) for step in range(4))
    assert 0 < top < recipe.learning_rate
    words = f"rises over 8 steps, but the run has 4: it reaches {top:.2g}, not 0.1; .*warmup_steps=0"
    with pytest.warns(UserWarning, match=words):
        train(recipe, images, tmp_path / "brief", device="cpu", show=False)
    assert short_of_warmup(recipe, 4) in dry_run(recipe, len(images), channels=1, images_per_second=1.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the learning rate rises")
        train(recipe, images, tmp_path / "brief", device="cpu", show=False, resume=True)  # as it was begun
        train(replace(recipe, warmup_steps=4), images, tmp_path / "whole", device="cpu", show=False)
    assert "warmup" not in dry_run(replace(recipe, warmup_steps=4), len(images), channels=1, images_per_second=1.0)


@pytest.mark.usefixtures("small")
def test_the_command_states_a_warmup_that_is_too_long(isd_train: Callable[..., subprocess.CompletedProcess]) -> None:
    done = isd_train(*SMALL, "--set", "warmup_steps=500", "--no-supervised", "--no-figures")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("isd_train: note: the learning rate rises over 500 steps, but the run has 12") == 1


def net(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(TinyNet(1, (4,), (1,)), [0.5], [0.25])


@pytest.mark.parametrize("tuning", [replace(kind, epochs=1, min_steps=2, batch_size=8) for kind in (LINEAR, FINETUNE)])
def test_a_folder_of_another_training_is_refused(tmp_path: Path, tuning: Tuning) -> None:
    images, encoder = greys(16), net()
    first = fit_classifier(encoder, images, tuning, folder=tmp_path)
    again = fit_classifier(net(), images, tuning, folder=tmp_path)  # the same
    torch.testing.assert_close(again.state_dict(), first.state_dict(), rtol=0, atol=0)
    for other, others in ((net(1), images), (encoder, replace(images, images=255 - images.images))):
        with pytest.raises(InputError, match="other settings, images or weights; remove it"):
            fit_classifier(other, others, tuning, folder=tmp_path)
    state = load_checkpoint(tmp_path)
    for name in ("encoder", "pixels"):  # as earlier versions wrote it
        del state["about"][name]
    save_checkpoint(tmp_path, state["step"], state, keep=1)
    old = fit_classifier(encoder, images, tuning, folder=tmp_path)
    torch.testing.assert_close(old.state_dict(), first.state_dict(), rtol=0, atol=0)


def test_a_network_is_brought_to_its_device_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used, shown = [], []

    def features(net: AtWork, batch: Tensor, *known: Any) -> Tensor:
        used.append(net.encode)
        return torch.zeros(len(batch), 4)
    monkeypatch.setattr(AtWork, "features", features)
    work, encoder = Work("shipped:digits", "digits", None, "data", tmp_path / "table", 2), net()
    start_or_go_on(work.folder, "key", 8, 4)
    compute(work, encoder, [("train", greys(8))], [(0, 4), (4, 8)], torch.device("meta"), shown.append)
    assert shown == [4, 4] and used[0] == used[1] and used[0].__self__.mean.device.type == "meta"
    assert encoder.mean.device.type == "cpu"  # it may be the user's


class OnSecond(nn.Module):
    "A network on the second GPU, by what it states."

    def buffers(self, recurse: bool = True) -> Any:
        return iter([SimpleNamespace(device=torch.device("cuda:1"))])


def test_images_go_to_the_gpu_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    second = OnSecond()
    for device in ("cuda", "cuda:1", None):
        with evaluating(second, device) as (encode, place):
            assert encode is second and place == torch.device("cuda:1")


class Twice(Encoder):
    "An encoder of a user's."

    def forward_features(self, images: Any) -> Tensor:
        return 2 * super().forward_features(images)


def test_an_encoder_of_ones_own_is_used_everywhere() -> None:
    plain = net()
    mine = Twice(plain.backbone, plain.mean, plain.std)
    images = greys(4)
    torch.testing.assert_close(embed(mine, images), 2 * embed(plain, images))
    torch.testing.assert_close(mine.features(images.images / 255), mine.forward_features(images.images / 255))


def stepped(layer: nn.Linear, optimizer: torch.optim.Optimizer, size: float = 1.0) -> nn.Linear:
    "The layer after two steps on gradients of this size."
    for _ in range(2):
        optimizer.zero_grad()
        (size * layer(torch.linspace(-1, 2, 12).reshape(4, 3))).sum().backward()
        optimizer.step()
    return layer


def linear_layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_lars_adapts_without_weight_decay() -> None:
    recipe = replace(LITTLE, optimizer="lars", learning_rate=0.5, weight_decay=0.0)
    start, layer = linear_layer(), linear_layer()
    stepped(layer, make_optimizer(recipe, layer), 1000.0)
    assert (layer.weight - start.weight).norm() < 0.01 * start.weight.norm()  # bound to the weights
    assert (layer.bias - start.bias).abs().max() > 100  # a plain step


def test_lars_with_weight_decay_is_what_it_was() -> None:
    from timm.optim import Lars
    recipe = replace(LITTLE, optimizer="lars", learning_rate=0.5, weight_decay=1e-3)
    layer, plain = linear_layer(), linear_layer()
    groups = [dict(params=[p for name, p in plain.named_parameters() if decays(name, p) == decayed],
                   weight_decay=1e-3 * decayed) for decayed in (True, False)]
    stepped(layer, optimizer := make_optimizer(recipe, layer))
    stepped(plain, before := Lars(groups, 0.5, momentum=0.9, always_adapt=False))
    torch.testing.assert_close(layer.state_dict(), plain.state_dict(), rtol=0, atol=0)
    optimizer.load_state_dict(before.state_dict())
    assert not any(group["always_adapt"] for group in optimizer.param_groups)  # a run of before goes on as it was


def test_generators_of_gpus_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    for place in ("torch.cuda.manual_seed_all", "torch.mps.manual_seed"):
        monkeypatch.setattr(place, seeds.append)
    drawn = torch.default_generator.get_state()
    open_encoder("timm:resnet10t,pretrained=false")
    view = TransformViews(lambda image: torch.rand(1, 4, 4))
    first, again = (view(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), seeded(0)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first[0], first[1])
    assert not seeds and torch.equal(torch.default_generator.get_state(), drawn)


def part_of(rank: int, count: int) -> Tensor:
    "What a process of two has of so many rows, which bear their numbers."
    rows = -(-count // 2)
    return torch.arange(3.0 * count).view(count, 3)[rank * rows:(rank + 1) * rows]


def gather_in_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    place, pixels = torch.device("cpu"), {"pixels": nn.Flatten()}
    for count in (1, 2, 7, 8, 9):
        for block in (1, 2, 3, 8192):
            found = gathered(part_of(rank, count), count, place, block=block)
            assert torch.equal(found, part_of(rank, count) if rank else torch.arange(3.0 * count).view(count, 3))
    found = gathered(part_of(rank, 7), 7, place, "meta")  # stands for memory that is not the GPU's
    assert len(found) == (3 if rank else 7) and found.device.type == ("cpu" if rank else "meta")
    kept: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer, "embed_all", lambda *given: (kept.append(given[-1]), embed_all(*given))[1])
        found = features_of(pixels, greys(7), shared=True, keep="cpu")["pixels"]
    assert kept == ["cpu"] and torch.equal(found, embed(nn.Flatten(), greys(7))[4 * rank:])
    dist.destroy_process_group()


def part_in_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    together: list[bool] = []
    pixels, sets = {name: nn.Flatten() for name in ("one", "other")}, (greys(7), greys(5))
    with pytest.MonkeyPatch.context() as patch:  # memory for one of them at a time
        patch.setattr(scorer, "free_memory", lambda *_: memory_need(7, 5, {"one": 256}))
        noted = lambda *_, **__: (together.append(dist.is_initialized()), {"knn1": 1.0})[1]  # noqa: E731
        patch.setattr(scorer, "score_features", noted)
        scores = score_encoders(pixels, *sets, shared=True, then=part_ways)
    assert not dist.is_initialized() and together == [[True, False], []][rank]
    assert scores == [{name: {"knn1": 1.0} for name in pixels}, {}][rank]


def test_processes_part_before_the_first_scores_what_they_gave_last(tmp_path: Path) -> None:
    "One that leaves while its message is on the way takes it along; one that waits may wait for hours."
    mp.start_processes(part_in_two, (str(tmp_path),), nprocs=2, start_method=FORKED.get_start_method())


@pytest.mark.parametrize(("free", "place"), [(1 << 40, "cuda"), (1 << 20, "cpu")])
def test_a_run_keeps_its_last_features_where_there_is_room(free: int, place: str, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "free_memory", lambda *_: free)
    kept = kept_at({"student": 512, "teacher": 512}, 1000, 100, torch.device("cuda"))
    assert kept == torch.device(place)
    assert kept_at({"student": 512}, 1000, 100, torch.device("mps")).type == "cpu"  # no float64 there, for scores
    places: list[Any] = []
    monkeypatch.setattr(last, "kept_at", lambda *_: "cpu")
    monkeypatch.setattr(last, "features_of", lambda *given, **how: (places.append(how["keep"]), features_of(*given))[1])
    images = digits(16, copies=1)[0].subset(range(64))
    recipe = replace(LITTLE, steps=1)
    trained = train(recipe, images, tmp_path, show=False, device="cpu")
    last.finish(recipe, Sets(images, images, images), trained, tmp_path, steps=1)
    assert places == ["cpu", "cpu"]


def test_features_of_several_processes_are_kept_where_they_should(tmp_path: Path) -> None:
    mp.start_processes(gather_in_two, (str(tmp_path),), nprocs=2, start_method=FORKED.get_start_method())


def test_one_purpose_has_one_function() -> None:
    from isd_nb.errors import suggest
    from isd_nb.kernels import backbones
    from isd_nb.methods import ressl
    from isd_nb.protocols import fine_tuning

    assert ressl.weakened is fine_tuning.crops_only is crops_only
    assert backbones.suggest is suggest and not hasattr(backbones, "closest")
