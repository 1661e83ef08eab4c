"""Time the evaluation of a run as it was and as it is, in turns, and compare the scores.

    python benchmarks/evaluation.py --data SPEC [--json FILE] [--rounds 3] [--steps 200] [--threads 2] [--images N]
                                    [--in-memory]

A small ResNet (recipe `cifar10_small`) is trained for `--steps` steps, so that its features have learned something.
Then student, teacher, untrained net and raw pixels are scored by 1-NN, 20-NN and linear layer on all images, which are
decoded from their files on the way (`--in-memory`: decoded before, and not timed):

* before: one pass in float32, decoding and network in turns, a search for each k, the linear layer by autograd and
  `torch.optim.SGD`, each on one standardised copy;
* now: `isd_nb.protocols.scorer.score_encoders`.

Both are timed by the clock and by the processor's time, which a busy machine changes less.
"""
import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from common import about
from torch import Tensor, nn

from isd_nb.data import ImageSet, subsample_evenly
from isd_nb.embedding import evaluating
from isd_nb.engine.training import train
from isd_nb.evaluation import knn_accuracy
from isd_nb.kernels.linear_classifier import LinearClassifier
from isd_nb.kernels.scores import score
from isd_nb.methods.building import build_method
from isd_nb.protocols.scorer import agreed_precision, score_encoders
from isd_nb.recipe import find_recipe
from isd_nb.sources.door import load_sets


def batches_before(images: ImageSet, size: int) -> Iterator[Tensor]:
    "Each batch is decoded when it is asked for."
    if images.images is not None:
        yield from images.images.split(size)
        return
    with ThreadPoolExecutor() as pool:
        for rows in torch.arange(len(images)).split(size):
            yield torch.cat(list(pool.map(images.get, rows.split(16))))


@torch.no_grad()
def features_before(nets: Mapping[str, nn.Module], images: ImageSet) -> dict[str, Tensor]:
    "One pass in float32, batches of 512."
    found: dict[str, list[Tensor]] = {name: [] for name in nets}
    for batch in batches_before(images, 512):
        pixels = (batch.float() / 255).contiguous(memory_format=torch.channels_last)
        for name, net in nets.items():
            with evaluating(net, None) as (encode, _):
                found[name].append(encode(pixels).float())
    return {name: torch.cat(parts) for name, parts in found.items()}


def linear_before(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> float:
    "Autograd and `torch.optim.SGD` on a standardised copy."
    classifier, generator = LinearClassifier(train_x, int(train_y.max()) + 1), torch.Generator().manual_seed(0)
    inputs = classifier.standardise(train_x)
    epochs = max(40, math.ceil(2000 / math.ceil(len(inputs) / 256)))
    optimizer = torch.optim.SGD(classifier.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [max(1, round(epochs * part / 40)) for part in (15, 30)])
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(256):
            optimizer.zero_grad()
            F.cross_entropy(classifier.linear(inputs[rows]), train_y[rows]).backward()
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        return score(classifier(test_x), test_y).top1


def before(nets: Mapping[str, nn.Module], bank: ImageSet, test: ImageSet) -> dict[str, dict[str, float]]:
    "As `isd_nb` scored encoders until version 0.1.0 of November 2026."
    train_x, test_x = features_before(nets, bank), features_before(nets, test)
    data = {name: (train_x[name], bank.known_labels(), test_x[name], test.known_labels()) for name in nets}
    return {name: dict(knn1=knn_accuracy(*parts, k=1), knn20=knn_accuracy(*parts, k=20), linear=linear_before(*parts))
            for name, parts in data.items()}


def now(nets: Mapping[str, nn.Module], bank: ImageSet, test: ImageSet) -> dict[str, dict[str, float]]:
    "As it is."
    found = score_encoders(nets, bank, test)
    return {name: {key: scores[key] for key in ("knn1", "knn20", "linear")} for name, scores in found.items()}


def timed(way: Callable, *arguments: object) -> tuple[dict[str, float], dict]:
    "Seconds by the clock and of the processor, and the scores."
    clock, processor = time.perf_counter(), time.process_time()
    scores = way(*arguments)
    return dict(seconds=time.perf_counter() - clock, processor_seconds=time.process_time() - processor), scores


def nets_of(data: str, bank: ImageSet, steps: int, threads: int) -> dict[str, nn.Module]:
    "The encoders of a short run, the untrained net and raw pixels."
    recipe = replace(find_recipe("cifar10_small"), data=data, epochs=None, steps=steps, evaluations=1,
                     image_size=bank.shape[1])
    with TemporaryDirectory() as folder:
        method = train(recipe, subsample_evenly(bank, 10_000), folder, show=False, threads=threads).method
    untrained = build_method(recipe, subsample_evenly(bank, 1000)).student
    return {"pixels": nn.Flatten(), "untrained": untrained, **method.encoders()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--data", default="torchvision:CIFAR10", help="as isd_train reads it, e.g. folder:PATH")
    parser.add_argument("--root", type=Path, default=Path("data"), help="where sets and indices of folders lie")
    parser.add_argument("--size", type=int, default=32, help="height and width, pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="of training before")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--images", type=int, default=1 << 40, help="to train on; a fifth of them to test on")
    parser.add_argument("--in-memory", action="store_true", help="decode before, without timing it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    in_memory = 1 << 40 if args.in_memory or not args.data.startswith("folder:") else 0
    bank, test = load_sets(args.data, args.size, None, args.root, memory=in_memory).to_score()
    bank, test = subsample_evenly(bank, args.images), subsample_evenly(test, max(1, args.images // 5))
    nets = nets_of(args.data, bank, args.steps, args.threads)
    kinds = agreed_precision(nets, bank, torch.device("cpu"))
    ways, times, scores = dict(before=before, now=now), dict[str, list](before=[], now=[]), {}
    for number in range(args.rounds):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            torch.set_num_threads(args.threads)
            took, scores[name] = timed(ways[name], nets, bank, test)
            times[name].append({key: round(value, 2) for key, value in took.items()})
            print(f"round {number + 1} {name:8}{took['seconds']:8.1f} s, processor {took['processor_seconds']:.1f}",
                  flush=True)
    medians = {key: {name: statistics.median(row[key] for row in rows) for name, rows in times.items()}
               for key in times["now"][0]}
    shares = {key: round(row["now"] / row["before"], 3) for key, row in medians.items()}
    differ = {name: {key: round(scores["now"][name][key] - value, 5) for key, value in row.items()}
              for name, row in scores["before"].items()}
    most = max(abs(value) for row in differ.values() for value in row.values())
    print(f"now by before: {shares}; scores differ by up to {most:.4f}")
    for name, row in scores["before"].items():
        columns = (f"{key:>8} {value:.4f} ({differ[name][key]:+.4f})" for key, value in row.items())
        print(f"{name:12}{kinds[name]:10}" + "".join(columns))
    if args.json:
        found = dict(times=times, medians=medians, now_by_before=shares, scores=scores, difference=differ,
                     precision=kinds)
        settings = about("evaluation", images=len(bank), test_images=len(test), size=args.size, rounds=args.rounds,
                         steps=args.steps, network="small_resnet of cifar10_small", from_files=bank.images is None)
        settings["command"] = settings["command"].replace(args.data, "SPEC")
        args.json.write_text(json.dumps(settings | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
