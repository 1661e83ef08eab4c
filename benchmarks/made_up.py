"""A large gallery that lies on disk as beside a run, for `benchmarks/explorer.py`."""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from isd_nb.data import ImageSet
from isd_nb.explore.explorer import Explorer
from isd_nb.explore.gallery import Gallery, read_cache, write_cache

STEPS, CLASSES, WIDTH, SIZE = (0, 100, 200, 300), 10, 128, 32


def keep_gallery(folder: Path, count: int) -> None:
    "Write made-up images and everything about them: classes are clouds that drift apart from step to step."
    g, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    labels = torch.randint(0, CLASSES, (count,), generator=g)
    coarse = torch.rand(count, 3, 4, 4, generator=g)
    np.save(folder / "images.npy", (F.interpolate(coarse, size=SIZE) * 255).to(torch.uint8).numpy())
    np.save(folder / "labels.npy", labels.numpy())
    middles, moments = torch.randn(CLASSES, WIDTH, generator=g), [(e, s) for e in ("teacher", "student") for s in STEPS]
    features, places, rows = {}, {}, {}
    for m in moments:
        noise = torch.randn(count, WIDTH, generator=g)
        features[m] = F.normalize(middles[labels] * m[1] / 300 + noise, dim=1).numpy()
        clouds = 4 * rng.normal(size=(CLASSES, 2)) * m[1] / 300
        places[m] = (rng.normal(size=(count, 2)) + clouds[labels.numpy()]).astype(np.float32)
        rows[m] = rng.integers(0, count, (count, 10)).astype(np.int32)
    write_cache(folder / "explorer", "bench", Gallery(kept_images(folder), features, places, rows))


def kept_images(folder: Path) -> ImageSet:
    images, labels = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("images", "labels"))
    return ImageSet(images, labels, tuple(f"class {c}" for c in range(CLASSES)))


def kept_explorer(folder: str) -> Explorer:
    "What the cell of the notebook calls."
    kept = Path(folder, "explorer")
    return Explorer(Gallery(kept_images(Path(folder)), **read_cache(kept, "bench"), folder=kept))
