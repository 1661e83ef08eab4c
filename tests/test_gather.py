"""Two processes end up with the same queue, in the order of their ranks, and with the same images and checkpoint."""
import errno
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from launching import FORKED

from isd_nb.data import ImageSet
from isd_nb.errors import InputError
from isd_nb.kernels.devices import from_all
from isd_nb.protocols import storage
from isd_nb.protocols.scorer import features_of
from isd_nb.queue import AnchorQueue, gather_keys
from isd_nb.sources.identity import check_same_images

IMAGES = ImageSet(torch.arange(7 * 12).to(torch.uint8).view(7, 3, 2, 2))  # three for one process, four for the other


def keys_of(rank: int) -> torch.Tensor:  # (2, 3): the rows of rank r are numbered 2 r and 2 r + 1
    return torch.tensor([[1.0, 2 * rank, 0.0], [1.0, 2 * rank + 1, 0.0]])


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    keys = keys_of(rank).requires_grad_()
    everyone = gather_keys(keys * 1.0)
    assert everyone.shape == (4, 3) and not everyone.requires_grad
    transposed = gather_keys(keys.detach().T.contiguous().T)  # not contiguous
    torch.testing.assert_close(transposed, everyone)
    assert gather_keys(keys.detach().bfloat16()).dtype == torch.bfloat16
    queue = AnchorQueue(5, 3, torch.Generator().manual_seed(0))
    queue.enqueue(everyone)
    features = features_of({"pixels": torch.nn.Flatten()}, IMAGES, shared=True)["pixels"]
    torch.save({"everyone": everyone, "queue": queue.state_dict(), "features": features}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_gather_of_two_processes(tmp_path):
    mp.start_processes(worker, (str(tmp_path),), nprocs=2, start_method=FORKED.get_start_method())
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    torch.testing.assert_close(first["everyone"], torch.cat([keys_of(0), keys_of(1)]))
    torch.testing.assert_close(first["everyone"], second["everyone"], rtol=0, atol=0)
    for name in ("anchors", "count"):
        torch.testing.assert_close(first["queue"][name], second["queue"][name], rtol=0, atol=0)
    assert first["queue"]["count"].item() == 4
    torch.testing.assert_close(first["features"], IMAGES.images.flatten(1) / 255)
    assert len(second["features"]) == 3  # it embedded its part


def agree(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    assert from_all("ab"[rank]) == ["a", "b"]
    check_same_images(IMAGES)
    check_same_images(None)
    fewer, others = IMAGES.subset(range(7 - rank)), IMAGES.subset([rank, *range(1, 7)])
    for images, words in ((fewer, "7 images of 0 classes to learn from, and process 1 has 6 images"),
                          (others, "process 1 has 7 images of 0 classes, but other ones")):
        with pytest.raises(InputError, match=words):
            check_same_images(images)
    checkpoints, check_whole = Path(folder) / "checkpoints", storage.check_whole

    def stale(path: Path) -> None:
        if path.name == "state_00000040.pt":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        check_whole(path)

    assert storage.load_together(checkpoints / "none") is None
    assert storage.load_together(checkpoints) == {"step": 40}
    with pytest.MonkeyPatch.context() as patch:
        if rank == 0:
            patch.setattr(storage, "check_whole", stale)
        with pytest.warns(UserWarning, match="trying the one before") if rank == 0 else nullcontext():
            assert storage.load_together(checkpoints) == {"step": 20}
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(storage, "check_whole", stale)
        with pytest.raises(InputError, match=r"process 1 cannot read .*state_00000040.pt \(.*Stale file handle"):
            storage.load_together(checkpoints)
    dist.destroy_process_group()


def test_two_processes_agree_on_images_and_checkpoint(tmp_path: Path) -> None:
    for step in (20, 40):
        storage.save_checkpoint(tmp_path / "checkpoints", step, {"step": step})
    mp.start_processes(agree, (str(tmp_path),), nprocs=2, start_method=FORKED.get_start_method())


def test_one_process_returns_its_keys():
    keys = torch.randn(4, 3)
    assert gather_keys(keys) is keys
