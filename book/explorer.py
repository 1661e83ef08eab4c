"""The explorer of the encoders that are shipped, on the held-out digits, as one file for the website.

    python book/explorer.py digits.html
"""
import sys
from pathlib import Path

import torch.nn.functional as F

from isd_nb.encoders import load_encoder
from isd_nb.evaluation import embed
from isd_nb.explore.explorer import Explorer
from isd_nb.explore.gallery import Gallery, gallery_of
from isd_nb.sources.digits import digits
from isd_nb.views import GENTLE


def shipped_gallery(**settings: object) -> Gallery:
    "The 500 held-out digits with the features of the shipped teacher and student."
    images = digits(size=16, copies=1)[1]
    encoders = {which: load_encoder("shipped:digits", which) for which in ("teacher", "student")}
    features = {(which, 7812): F.normalize(embed(encoder, images), dim=1) for which, encoder in encoders.items()}
    return gallery_of(images, features, title="ISD on digits", views=GENTLE, show=False, **settings)


def write_explorer(path: Path) -> None:
    "One HTML file with maps, thumbnails and features of the shipped teacher and student inside."
    path.parent.mkdir(parents=True, exist_ok=True)
    Explorer(shipped_gallery()).html(path)


if __name__ == "__main__":
    write_explorer(Path(sys.argv[1]))
