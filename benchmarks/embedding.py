"""Memory of `isd_embed` for sets of growing size: small JPEG files that are made here and deleted afterwards.

    python benchmarks/embedding.py          # 10,000 and 100,000 images; --endings npy,csv,parquet for every format
"""
import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from isd_nb.encoders import BackboneConfig, Encoder, build_backbone, save_encoder
from isd_nb.kernels.devices import machine
from isd_nb.protocols.storage import write_json

RESULT = Path(__file__).parent.parent / "results" / "bench" / "embedding.json"


def make_images(folder: Path, count: int, size: int = 32, classes: int = 10) -> None:
    "So many JPEG files of random blocks, in a folder for each class."
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class_{number % classes}" / f"{number:06}.jpg"
        if number < classes:
            path.parent.mkdir(parents=True)
        blocks = rng.integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((size, size), Image.Resampling.NEAREST).save(path)


def make_encoder(path: Path, size: int) -> None:
    "The network `tiny` with random weights."
    torch.manual_seed(0)
    config = BackboneConfig("tiny")
    save_encoder(path, {"teacher": Encoder(build_backbone(config), [0.5] * 3, [0.2] * 3)}, config, size)


def measure(arguments: list[str]) -> dict[str, float]:
    "Peak of memory (MiB) of one call of `isd_embed`, in a process of its own."
    code = "from isd_nb.cli.embed import isd_embed; isd_embed()"
    calm = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], env=calm)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"isd_embed {' '.join(arguments)} failed")
    return dict(peak_mib=round(used.ru_maxrss / 1024, 1))


def main() -> None:
    "Measure, and write the result."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="10000,100000")
    parser.add_argument("--endings", default="npy")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    about = dict(command=shlex.join(["python", "benchmarks/embedding.py", *sys.argv[1:]]), machine=machine(),
                 network="tiny, width 16, random weights", images="JPEG of 32 x 32 pixels, 10 classes", threads=1)
    rows = []
    for count in map(int, asked.counts.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_images(folder / "images", count)
            make_encoder(folder / "tiny.safetensors", 32)
            for ending in asked.endings.split(","):
                out = folder / f"features.{ending}"
                data = ["--data", f"folder:{folder / 'images'}", "--root", str(folder / "data"), "--device", "cpu"]
                used = measure([str(folder / "tiny.safetensors"), *data, "--out", str(out)])
                rows.append(dict(images=count, ending=ending, **used, file_mib=round(out.stat().st_size / 2**20, 1)))
                print(rows[-1], flush=True)
                write_json(asked.out, about | dict(rows=rows))  # what is measured stays, whatever ends the rest


if __name__ == "__main__":
    main()
