"""Time training steps whose convolutions learn by matrix products and by PyTorch's own way, in turns.

    python benchmarks/products.py [--rounds 20] [--threads 1] [--recipes digits cifar10_small]

The images are random; the first four rounds warm up. Medians of the processor's time, which other programs change
less than the clock.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch
from torch import nn

from isd_nb.data import ImageSet
from isd_nb.engine.state import TrainState, prepare_training, train_step
from isd_nb.recipe import find_recipe

WARM = 4


def prepared(name: str, products: bool) -> TrainState:
    "A training of a recipe on random images, as `isd_train` begins it, or with PyTorch's convolutions."
    recipe = replace(find_recipe(name), epochs=None, steps=1000)
    shape = (8 * recipe.batch_size, 1 if name == "digits" else 3, recipe.image_size, recipe.image_size)
    made = prepare_training(recipe, ImageSet(torch.randint(256, shape, dtype=torch.uint8)), "cpu")
    for module in made.method.modules():
        if isinstance(module, nn.Conv2d) and not products:
            module.__class__ = nn.Conv2d
    return made


def milliseconds(training: TrainState) -> float:
    "Of the processor, for one step."
    rows = torch.arange(training.recipe.batch_size)
    images, started = training.images.get(rows), time.process_time()
    train_step(training, rows, images)
    return 1000 * (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipes", nargs="+", default=["digits", "cifar10_small"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.recipes:
        pair = [prepared(name, products) for products in (True, False)]
        took = [[milliseconds(training) for training in pair] for _ in range(WARM + given.rounds)][WARM:]
        now, before = (statistics.median(column) for column in zip(*took, strict=True))
        print(f"{name}: {now:.1f} ms a step by products, {before:.1f} by PyTorch's way, {before / now:.2f}", flush=True)


if __name__ == "__main__":
    main()
