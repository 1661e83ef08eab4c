"""Devices are read in one place; what no machine here has is replaced by what its library would state."""

import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode

from isd_nb.cli.train import command as isd_train
from isd_nb.data import ImageSet
from isd_nb.embedding import embed
from isd_nb.engine.launch import process_count
from isd_nb.engine.state import own_chance, prepare_training, start_processes, train_step
from isd_nb.errors import InputError
from isd_nb.kernels.devices import cores, free_memory, has_bfloat16, pick_device, pick_devices
from isd_nb.kernels.view_transforms import draw_params
from isd_nb.recipe import find_recipe
from isd_nb.sources.batches import EpochSampler, decoders, placed, read_batches
from isd_nb.views import STRONG

GREYS = ImageSet(torch.zeros(10, 1, 4, 4, dtype=torch.uint8))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    "A machine with so many GPUs, by what PyTorch states."

    def has(gpus: int = 0, apple: bool = False) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
        monkeypatch.setattr("torch.backends.mps.is_available", lambda: apple)

    yield has
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("gpus", "apple", "device", "found"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "cpu"),
        (2, False, "auto", "cuda"),
        (2, False, "cuda:1", "cuda:1"),
        (2, False, "cpu", "cpu"),
        (0, True, "mps", "mps"),
    ],
)
def test_a_device_by_its_name(machine: Any, gpus: int, apple: bool, device: str, found: str) -> None:
    machine(gpus, apple)
    assert pick_device(device) == torch.device(found)


@pytest.mark.parametrize(
    ("gpus", "device", "words"),
    [
        (0, "cuda", "PyTorch finds no CUDA device"),
        (0, "cuda:1", "PyTorch finds no CUDA device"),
        (1, "cuda:7", "finds 1 CUDA device: the last is cuda:0"),
        (2, "cuda:2", "finds 2 CUDA devices: the last is cuda:1"),
        (0, "mps", "no GPU of Apple's"),
        (0, "gpu", "unknown device 'gpu'"),
        (0, "cuda:", "unknown device 'cuda:'"),
        (0, "cuda:-1", "unknown device"),
        (0, "cpu:0", "unknown device"),
    ],
)
def test_what_there_is_not_gets_one_sentence(machine: Any, gpus: int, device: str, words: str, capsys: Any) -> None:
    machine(gpus)
    with pytest.raises(InputError, match=words):
        pick_device(device)
    with pytest.raises(SystemExit):
        isd_train(device=device)
    assert words in (said := capsys.readouterr().err) and len(said.strip().splitlines()) == 1


def test_one_gpu_serves_one_process(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(2, apple=True)
    recipe = find_recipe("digits")
    for device in ("cuda:1", "mps"):
        assert process_count(0, recipe, device) == process_count(1, recipe, device) == 1
        with pytest.raises(InputError, match="is one GPU, which one process takes, not 2"):
            process_count(2, recipe, device)
    assert pick_devices("cuda", 2).type == "cuda"
    with pytest.raises(InputError, match="there are 2 GPUs"):
        pick_devices("cuda", 3)
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it
    with pytest.raises(InputError, match="cuda:1 is one GPU"):
        start_processes("cuda:1", None, None)


@pytest.mark.parametrize("device", ["mps", "cuda:1"])
def test_training_begins_on_the_device_that_was_named(machine: Any, device: str,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []  # it also begins CUDA, which counting its memory needs
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    machine(2 * (device != "mps"), apple=device == "mps")
    assert start_processes("cpu", None, None).device == torch.device("cpu")
    assert start_processes(device, None, None).device == torch.device(device)
    assert current == [torch.device(device)] * (device != "mps")
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ and not (device == "mps" and has_bfloat16(device))
    assert start_processes("cpu", None, None).device == torch.device("cpu")


class NoDoubles(TorchDispatchMode):
    "Refuses what mps has not: numbers of 64 bits behind the point."

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            assert not (isinstance(value, torch.Tensor) and value.dtype == torch.float64), function
        return made


@pytest.mark.parametrize("method", ["isd", "moco_v2", "swav"])
def test_a_step_and_features_need_no_float64(method: str) -> None:
    images = ImageSet(torch.randint(256, (32, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8))
    recipe = replace(find_recipe("digits"), method=method, steps=2, epochs=None, batch_size=16, queue_size=32, width=4)
    state = prepare_training(replace(recipe, batch_norm_splits=1), images, "cpu")
    with NoDoubles():
        train_step(state, torch.arange(16), images.images[:16])
        embed(state.method.student, images)


def test_a_set_larger_than_the_device_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    images = GREYS
    assert placed(images, "meta").images.device.type == "meta", "a device without memory of its own, for the test"
    monkeypatch.setattr("isd_nb.sources.batches.free_memory", lambda device: 319)  # the images have 160 bytes
    assert placed(images, "meta") is images
    plan = EpochSampler(len(images), 4, seed=0, stop=1)
    ((rows, batch),) = read_batches(images, plan, slice(2), torch.device("meta"))
    assert (len(rows), batch.device.type, tuple(batch.shape)) == (4, "meta", (2, 1, 4, 4))


def test_chance_on_mps_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    images, said = ImageSet(torch.zeros(32, 1, 16, 16, dtype=torch.uint8)), []
    recipe = replace(find_recipe("digits"), steps=2, epochs=None, batch_size=16, queue_size=32, width=4)
    state = prepare_training(recipe, images, "cpu")
    for name in ("manual_seed", "set_rng_state"):
        monkeypatch.setattr(f"torch.mps.{name}", lambda value, name=name: said.append((name, value)))
    monkeypatch.setattr("torch.mps.get_rng_state", lambda: "before")
    state.accelerator = type("OfApple", (), dict(device=torch.device("mps"), process_index=0))
    with own_chance(state):
        assert said[0][0] == "manual_seed"
    assert said[1:] == [("set_rng_state", "before")]


class Copies(TorchDispatchMode):
    "Notes the copies to another device that nothing waits for."

    def __init__(self) -> None:
        super().__init__()
        self.unawaited: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (kwargs or {}).get("non_blocking"):
            self.unawaited.append(function)
        return function(*args, **(kwargs or {}))


def test_only_pinned_memory_is_copied_without_waiting() -> None:
    "Pageable memory may be freed before a GPU of Apple's has read it; the device meta stands for one."
    meta, views = torch.device("meta"), asdict(STRONG)
    with Copies() as copies:
        assert draw_params(4, 8, 8, torch.Generator().manual_seed(0), **views).to(meta).top.device == meta
        ((_, batch),) = read_batches(GREYS, EpochSampler(10, 4, seed=0, stop=1), slice(4), meta)
    assert batch.device == meta and not copies.unawaited


def test_memory_of_apple(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.mps.recommended_max_memory", lambda: 12 << 30)
    for allocated, free in ((5 << 30, 7 << 30), (13 << 30, 0)):
        monkeypatch.setattr("torch.mps.driver_allocated_memory", lambda allocated=allocated: allocated)
        assert free_memory("mps") == free


def test_shared_memory_is_shared_with_the_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isd_nb.sources.batches.cores", lambda: 128)
    monkeypatch.setattr("isd_nb.sources.batches.Path.is_dir", lambda path: True)
    monkeypatch.setattr("isd_nb.sources.batches.shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 30))
    for count, workers in (("1", 8), ("4", 2), ("16", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", count)
        assert decoders(None, 1 << 25) == workers  # two batches each that wait and two on their way: 128 MB


@pytest.mark.parametrize("stated", [OSError("not permitted"), "", "a lot"])
def test_a_quota_that_cannot_be_read_is_none(stated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(path: Path) -> str:
        if isinstance(stated, OSError):
            raise stated
        return stated
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert cores() == (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
