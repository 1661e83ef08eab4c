"""Images per second of a packed set, of other formats, and of the same images in memory.

    python benchmarks/packed.py --data SPEC [--json FILE] [--size 32] [--images 10000] [--batch 256] [--rounds 7]
                                [--processes 1 2] [--seconds 3]

Every contestant hands out batches of bytes (B, C, H, W) in random order (WebDataset: shards in order, shuffled in a
buffer of 1,000), in one process and in several that begin together; each reads for some seconds, epoch after epoch,
and the contestants take turns. The formats that are not installed are left out: pip install datasets webdataset.
"""
import argparse
import io
import itertools
import json
import multiprocessing
import statistics
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import about
from torch import Tensor

from isd_nb.data import ImageSet, subsample_evenly
from isd_nb.sources.door import load_sets
from isd_nb.sources.packed import read_packed, write_packed

Batches = Iterator[Tensor]  # uint8 (B, C, H, W) each, without end


def order(count: int, batch: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randperm(count, generator=generator).split(batch)


def from_memory(folder: Path, size: int, batch: int) -> Batches:
    pixels = torch.from_numpy(np.load(folder / "packed" / f"bank_{size}.npy"))
    return (pixels[rows] for rows in order(len(pixels), batch))


def from_packed(folder: Path, size: int, batch: int) -> Batches:
    images = read_packed(folder / "packed", size)[1]
    return (images.get(rows) for rows in order(len(images), batch))


def from_files(folder: Path, size: int, batch: int) -> Batches:
    images = torch.load(folder / "files.pt", weights_only=False)
    return (images.get(rows) for rows in order(len(images), batch))


def from_arrow(folder: Path, size: int, batch: int) -> Batches:
    from datasets import load_from_disk

    table = load_from_disk(str(folder / "arrow")).with_format("torch", columns=["image"])
    return (table[rows.tolist()]["image"] for rows in order(len(table), batch))


def from_shards(folder: Path, size: int, batch: int) -> Batches:
    import webdataset

    shards = sorted(str(path) for path in folder.glob("shard-*.tar"))
    stream = webdataset.WebDataset(shards, shardshuffle=False).shuffle(1000).decode().to_tuple("npy")
    return (torch.from_numpy(part[0]) for _ in itertools.repeat(None) for part in stream.batched(batch))


CONTESTANTS: dict[str, Callable[[Path, int, int], Batches]] = dict(
    memory=from_memory, packed=from_packed, arrow=from_arrow, webdataset=from_shards, files=from_files)


def write_all(folder: Path, images: ImageSet, files: ImageSet, size: int, names: list[str]) -> dict[str, float]:
    "The set in every format, and the seconds that each took."
    begun, took = time.perf_counter(), {}
    write_packed(folder / "packed", {("bank", size): images}, "images of a benchmark")
    took["packed"], begun = time.perf_counter() - begun, time.perf_counter()
    if "arrow" in names:
        from datasets import Array3D, Dataset, Features

        features = Features(dict(image=Array3D(images.shape, "uint8")))
        Dataset.from_dict(dict(image=list(images.images.numpy())), features).save_to_disk(str(folder / "arrow"))
        took["arrow"], begun = time.perf_counter() - begun, time.perf_counter()
    if "webdataset" in names:
        for start in range(0, len(images), 2500):
            with tarfile.open(folder / f"shard-{start:08}.tar", "w") as shard:
                for i in range(start, min(start + 2500, len(images))):
                    data = io.BytesIO()
                    np.save(data, images.images[i].numpy())
                    entry = tarfile.TarInfo(f"{i:08}.npy")
                    entry.size = len(data.getvalue())
                    shard.addfile(entry, io.BytesIO(data.getvalue()))
        took["webdataset"] = time.perf_counter() - begun
    torch.save(files, folder / "files.pt")
    return {name: round(seconds, 2) for name, seconds in took.items()}


OPENING = 300.0  # seconds; a reader that has not opened its images by then has failed
TOGETHER: list[Any] = []  # in a process that reads beside others: the barrier at which they begin


def read_for(name: str, folder: Path, size: int, batch: int, seconds: float) -> tuple[int, float, float, float]:
    "Read for some seconds: the number of images, begin and end by the clock, and the seconds of the processor."
    try:
        next(CONTESTANTS[name](folder, size, batch))  # imports, and pages in memory
        batches, count = CONTESTANTS[name](folder, size, batch), 0  # opening is not timed: it happens once in a run
    except BaseException:
        for barrier in TOGETHER:
            barrier.abort()  # the others would wait for this one
        raise
    for barrier in TOGETHER:
        barrier.wait(OPENING)
    begun, processor = time.perf_counter(), time.process_time()
    while (now := time.perf_counter()) < begun + seconds:
        count += len(next(batches))
    return count, begun, now, time.process_time() - processor


def read_together(processes: int, *what: Any) -> list[tuple[int, float, float, float]]:
    "What `read_for` returns in each of so many processes, which begin together."
    context, found, failed = multiprocessing.get_context("fork"), [], []
    with context.Pool(processes, TOGETHER.append, (context.Barrier(processes),)) as pool:
        for reader in [pool.apply_async(read_for, what) for _ in range(processes)]:
            try:
                found.append(reader.get(2 * OPENING + what[-1]))  # also where a process was ended from outside
            except Exception as error:
                failed.append(error)
    if failed:  # those that only waited for another come last
        raise min(failed, key=lambda error: isinstance(error, threading.BrokenBarrierError))
    return found


def rates(found: list[tuple[int, float, float, float]]) -> dict[str, float]:
    "Images per second of all processes together, and per second of a processor."
    return dict(images_per_second=sum(count / (ended - begun) for count, begun, ended, _ in found),
                images_per_processor_second=sum(count for count, *_ in found) / sum(worked for *_, worked in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--data", default="torchvision:CIFAR10", help="as isd_train reads it")
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--size", type=int, default=32, help="height and width, pixels")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)  # processes are forked
    files = subsample_evenly(load_sets(args.data, args.size, None, args.root, memory=0).bank, args.images)
    rows = torch.arange(len(files)).split(256)
    images = ImageSet(torch.cat([files.get(part) for part in rows])) if files.images is None else files
    needs = dict(arrow="datasets", webdataset="webdataset")  # libraries
    names = [name for name in CONTESTANTS if name not in needs or find_spec(needs[name])]
    names = [name for name in names if name != "files" or files.images is None]
    with TemporaryDirectory() as place:
        folder = Path(place)
        wrote, results = write_all(folder, images, files, args.size, names), {}
        for processes in args.processes:
            rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            for number in range(args.rounds):
                for name in names if number % 2 == 0 else names[::-1]:
                    what = name, folder, args.size, args.batch, args.seconds
                    rounds[name].append(rates(read_together(processes, *what)))
            results[processes] = {name: {key: round(statistics.median(row[key] for row in rows)) for key in rows[0]}
                                  for name, rows in rounds.items()}
            for name, row in results[processes].items():
                share = row["images_per_processor_second"] / results[processes]["memory"]["images_per_processor_second"]
                print(f"{processes} process(es) {name:12}{row['images_per_second']:>12,} images/s, "
                      f"{row['images_per_processor_second']:>12,} per processor second, {share:.1%}", flush=True)
    if args.json:
        settings = about("packed", images=len(images), size=args.size, batch=args.batch, rounds=args.rounds,
                         seconds=args.seconds)
        settings["command"] = settings["command"].replace(args.data, "SPEC")
        args.json.write_text(json.dumps(settings | dict(write_seconds=wrote, results=results), indent=1) + "\n")


if __name__ == "__main__":
    main()
