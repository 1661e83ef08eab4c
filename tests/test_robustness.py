"""What must not end, corrupt or silently change a run: bad files, second processes, lost checkpoints, rounding."""
import copy
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from launching import Forked, run_forked
from PIL import Image
from torch import nn

from isd_nb.data import ImageSet
from isd_nb.errors import InputError, locked
from isd_nb.sources.layout import read_folder, read_indexed
from isd_nb.engine.runs import only_one, read_metrics, write_metrics
from isd_nb.protocols.storage import load_checkpoint, save_checkpoint
from isd_nb.methods.sync_batch_norm import SyncBatchNorm, sync_batch_norm
from isd_nb.sources.torchvision_sets import open_torchvision

CLASSES = 3


@pytest.fixture
def on_disk(tmp_path: Path) -> ImageSet:
    "300 files whose grey value is ten times their class, in no order of classes."
    labels = torch.randint(CLASSES, (300,), generator=torch.Generator().manual_seed(0))
    for i, label in enumerate(labels.tolist()):
        Image.fromarray(np.full((4, 5, 3), 10 * label, np.uint8)).save(tmp_path / f"{i:03}.png")
    return ImageSet(None, labels, ("a", "b", "c"), tuple(sorted(tmp_path.glob("*.png"))), (3, 2, 2))


@contextmanager
def caught_warnings() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def spoil(images: ImageSet, rows: list[int]) -> None:
    for i in rows:
        images.paths[i].write_bytes(b"no picture")


def test_the_next_of_the_same_class_stands_in_for_a_bad_file(on_disk: ImageSet) -> None:
    spoil(on_disk, [5, 77, 299])
    with caught_warnings() as caught:
        first = on_disk.get(range(300))
        again = on_disk.get(range(300))
    assert torch.equal(first[:, 0, 0, 0].long(), 10 * on_disk.labels)  # no label lies
    assert torch.equal(first, again)
    named = [Path(str(w.message).split(" cannot")[0]).name for w in caught]
    assert sorted(named) == ["005.png", "077.png", "299.png"]  # each of them once
    assert {w.category for w in caught} == {UserWarning}


def test_without_labels_the_next_file_stands_in(on_disk: ImageSet) -> None:
    plain = ImageSet(None, None, (), on_disk.paths, on_disk.shape)
    spoil(plain, [4, 5, 299])
    with caught_warnings():
        assert torch.equal(plain.get([4, 5, 299]), plain.get([6, 6, 0]))
    assert plain.unreadable.named == {plain.paths[i] for i in (4, 5, 299)}


def test_a_subset_takes_its_own_files(on_disk: ImageSet) -> None:
    "What was held out must not come back as a stand-in, and a subset counts for itself."
    rows = (on_disk.labels == 1).nonzero()[:2, 0].tolist()
    part = on_disk.subset(rows)
    spoil(on_disk, rows)
    with caught_warnings(), pytest.raises(InputError, match="nor any other file that could stand in"):
        part.get([0])
    assert not on_disk.unreadable.named


def test_too_many_bad_files_are_an_error_that_names_the_share(on_disk: ImageSet) -> None:
    spoil(on_disk, list(range(0, 300, 10)))  # one in ten
    with caught_warnings(), pytest.raises(InputError, match=r"21 of 300 files cannot be read, .*more than 5%"):
        on_disk.get(range(300))


def test_files_that_are_damaged_in_a_row_are_counted_once(on_disk: ImageSet) -> None:
    "Each reading of the first of them tries all that follow; 20 of 300 are not too many however often they are read."
    plain = ImageSet(None, None, (), on_disk.paths, on_disk.shape)
    spoil(plain, list(range(100, 120)))
    with caught_warnings() as caught:
        for _ in range(3):
            assert torch.equal(plain.get([100, 101]), plain.get([120, 120]))
    assert len(caught) == 20


def test_one_bad_file_in_thirty_is_no_error(on_disk: ImageSet) -> None:
    spoil(on_disk, list(range(0, 300, 30)))
    with caught_warnings() as caught:
        for _ in range(10):
            on_disk.get(range(300))
    assert len(caught) == 10


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_workers_of_a_loader_read_on(on_disk: ImageSet) -> None:
    spoil(on_disk, [3])
    loader = torch.utils.data.DataLoader(on_disk, batch_size=50, num_workers=1)
    assert torch.equal(torch.cat(list(loader))[:, 0, 0, 0].long(), 10 * on_disk.labels)


@pytest.fixture
def tiny_imagenet(tmp_path: Path) -> Path:
    "The layout of the archive: test/images has no labels, val/images has a table."
    path = tmp_path / "tiny-imagenet-200"
    rows = []
    for kind, count in (("train", 4), ("val", 3), ("test", 5)):
        for label in range(2):
            folder = path / kind / (f"n{label}/images" if kind == "train" else "images")
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                Image.fromarray(np.full((4, 4, 3), 50 * label, np.uint8)).save(folder / f"{kind}_{label}{i}.JPEG")
                rows += [f"val_{label}{i}.JPEG\tn{label}\t0\t0\t3\t3\n"] if kind == "val" else []
    (path / "val" / "val_annotations.txt").write_text("".join(rows))
    return path


def check_tiny(path: Path, cache: Path) -> None:
    for train, test in (read_indexed(path, 4, cache), read_folder(path, 4)):
        assert (len(train), len(test), test.classes) == (8, 6, ("n0", "n1"))
        assert test.labels.tolist() == [0, 0, 0, 1, 1, 1]
        torch.testing.assert_close(test.images[:, 0, 0, 0].long(), 50 * test.labels, atol=5, rtol=0)


def test_tiny_imagenet_as_it_is_unpacked(tiny_imagenet: Path, tmp_path: Path) -> None:
    "Also moved, beside the links that an earlier version made, and where nothing can be written."
    before = sorted(tiny_imagenet.rglob("*"))
    check_tiny(tiny_imagenet, tmp_path / "cache")
    assert sorted(tiny_imagenet.rglob("*")) == before, "nothing is written into the user's data"
    moved = tiny_imagenet.rename(tmp_path / "moved")
    check_tiny(moved, tmp_path / "cache")
    link = moved / "labelled_val" / "n1" / "val_12.JPEG"
    link.parent.mkdir(parents=True)
    link.symlink_to(tiny_imagenet / "gone.JPEG")  # leads nowhere
    check_tiny(moved, tmp_path / "cache")


def test_locks_do_without_fcntl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with locked(tmp_path, wait=False) as first, locked(tmp_path, wait=False) as second:
        assert first and second


class SlowSet:
    "Downloads for a while; a second download beside it would find half a file."

    def __init__(self, root: Path, train: bool, download: bool) -> None:
        archive = Path(root) / "archive"
        if not archive.exists():
            archive.write_text("half")
            time.sleep(0.3)
            archive.write_text("whole")
            with (Path(root) / "downloads").open("a") as file:
                file.write("x")
        if archive.read_text() != "whole":
            raise RuntimeError("file corrupted")


def open_slow(root: Path) -> bool:
    return isinstance(open_torchvision(SlowSet, "Slow", root, train=True), SlowSet)


def test_a_set_is_downloaded_by_one_process(tmp_path: Path) -> None:
    with get_context("fork").Pool(4) as pool:
        assert all(pool.map(open_slow, [tmp_path / "new"] * 4, chunksize=1))
    assert (tmp_path / "new" / "downloads").read_text() == "x"


TAKE = """
import sys, time
from pathlib import Path
from isd_nb.engine.runs import only_one
with only_one(Path(sys.argv[1])):
    print("mine", flush=True)
"""
HOLD = TAKE + "    time.sleep(600)"


def test_only_one_process_trains_in_a_directory(tmp_path: Path) -> None:
    holder = Forked([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "mine\n"
        with pytest.raises(InputError, match="another process is training in"), only_one(tmp_path):
            raise AssertionError
        with only_one(tmp_path / "supervised"):  # a run in a subfolder is another run
            pass
    finally:
        holder.kill()
        holder.communicate()
    with only_one(tmp_path):  # the lock went with the process
        pass


def test_the_lock_ends_with_the_block_and_not_with_a_forked_worker(tmp_path: Path) -> None:
    class Failed(Exception):
        pass

    with pytest.raises(Failed), only_one(tmp_path):
        worker = get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        raise Failed
    try:
        found = run_forked([sys.executable, "-c", TAKE, tmp_path])
    finally:
        worker.kill()
    assert found.stdout == "mine\n", found.stderr
    with only_one(tmp_path):  # and the same process may have it again
        pass


def test_a_lock_is_not_needed_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with locked(tmp_path / "file" / "below") as alone:
        assert alone


def states(folder: Path) -> list[int]:
    return sorted(int(p.stem.removeprefix("state_")) for p in folder.glob("state_*.pt"))


@pytest.mark.filterwarnings("ignore:.*cannot be read")
@pytest.mark.parametrize("damage", [b"", b"\0" * 999, b"PK\3\4 half of a file", b"garbage" * 50])
def test_checkpoints_that_cannot_be_read_are_not_taken_for_none(tmp_path: Path, damage: bytes) -> None:
    for step in (5000, 6000):
        save_checkpoint(tmp_path, step, {"step": step})
        (tmp_path / f"state_{step:08}.pt").write_bytes(damage)
    with pytest.raises(InputError, match=r"none of the 2 checkpoints .*delete its state_\*\.pt"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, 100, {"step": 100})
    assert (states(tmp_path), load_checkpoint(tmp_path)) == ([100], {"step": 100})


def test_a_new_checkpoint_outlives_damaged_ones_of_later_steps(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save_checkpoint(tmp_path, step, {"step": step}, keep=4)
    for step in (30, 40):
        (tmp_path / f"state_{step:08}.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert load_checkpoint(tmp_path) == {"step": 20}
    save_checkpoint(tmp_path, 21, {"step": 21})
    assert states(tmp_path) == [20, 21]
    save_checkpoint(tmp_path, 22, {"step": 22}, keep=1)
    assert states(tmp_path) == [22]


def test_metrics_keep_every_column(tmp_path: Path) -> None:
    rows = [{"step": 1, "zeta": 0.5}, {"step": 2, "loss": 0.25}, {"step": 3, "alpha": 2.0, "loss": 0.0}]
    write_metrics(tmp_path, iter(rows))
    assert read_metrics(tmp_path) == rows
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert header[0] == "step" and header[-2:] == ["alpha", "zeta"]


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> None:
    "Two processes that hold the same rows: a sum over both is twice one's own."
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(2))


def both(batch_norm: nn.Module, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    plain = batch_norm.to(dtype)
    for i, parameter in enumerate(plain.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
    synced = sync_batch_norm(copy.deepcopy(plain))
    assert type(synced) is SyncBatchNorm
    return plain, synced


@pytest.mark.parametrize("how", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}])
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 6)])
def test_synchronised_batch_norm_is_batch_norm_of_all_rows(twins: None, shape: tuple[int, ...], how: dict) -> None:
    plain, synced = both((nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(3, **how))
    assert [n for n, _ in synced.named_parameters()] == [n for n, _ in plain.named_parameters()]
    draw = torch.Generator().manual_seed(9)
    for _ in range(2):
        x = torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(shape, generator=draw, dtype=torch.float64)  # of a loss that no symmetry makes zero
        whole = plain(torch.cat([x, x.detach()]))
        own = synced(x)
        torch.testing.assert_close(own, whole[:len(x)], rtol=1e-12, atol=1e-12)
        theirs = torch.autograd.grad((whole * torch.cat([weight, weight])).sum(), [x, *plain.parameters()])
        ours = torch.autograd.grad((own * weight).sum(), [x, *synced.parameters()])
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-10, atol=1e-10)
        for mine, of_two in zip(ours[1:], theirs[1:], strict=True):
            torch.testing.assert_close(2 * mine, of_two)  # parameters' gradients are put together by DDP
    torch.testing.assert_close(dict(synced.named_buffers()), dict(plain.named_buffers()))
    torch.testing.assert_close(synced.eval()(x), plain.eval()(x))


def test_gradients_of_synchronised_batch_norm_by_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    "In a real group of one process, made to take the path of several."
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        synced = both(nn.BatchNorm1d(3, track_running_stats=False))[1]
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(synced, x)
    finally:
        dist.destroy_process_group()


def test_a_large_constant_channel_stays_finite(twins: None) -> None:
    plain, synced = both(nn.BatchNorm1d(3), torch.float32)
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 12345.678
    x[:, 2] = 10_000 + 0.1 * x[:, 2]
    x.requires_grad_()
    whole, own = plain(torch.cat([x, x.detach()]))[:64], synced(x)
    assert own.isfinite().all() and torch.autograd.grad(own.square().sum(), x)[0].isfinite().all()
    torch.testing.assert_close(own[:, [0, 2]], whole[:, [0, 2]], rtol=1e-2, atol=2e-2)
    assert synced.running_var.min() >= 0


def test_half_precision_stays_half_and_computes_in_float32(twins: None) -> None:
    synced = both(nn.BatchNorm1d(3), torch.float32)[1]
    assert synced(torch.randn(8, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
