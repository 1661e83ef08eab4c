"""Two processes with different keys end up with the same queue, in the order of their ranks."""
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from launching import FORKED

from isd_nb.data import ImageSet
from isd_nb.protocols.scorer import features_of
from isd_nb.queue import AnchorQueue, gather_keys

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


def test_one_process_returns_its_keys():
    keys = torch.randn(4, 3)
    assert gather_keys(keys) is keys
