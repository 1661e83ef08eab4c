"""Thousands of bad inputs for the commands, and what must hold whatever they are given.

    python tests/fuzz.py                        2,400 inputs; the result goes to results/fuzz.json
    python tests/fuzz.py --count 200 --seed 7   fewer, and others
    python tests/fuzz.py --planted 3            with a fault put in on purpose, which must be found

For every input: no stack trace (an exception that no one expects counts as found, with its trace), no hanging, a
sentence where the command refuses, no file outside the run's directory and the cache, the user's images as they were,
and nothing of a run lost. The commands run in this process: importing PyTorch once is what makes thousands possible.
`isd_explore` is left out, for a map takes seconds, and `isd_export` but for TorchScript, for other formats do.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from isd_nb.cli.embed import isd_embed
from isd_nb.cli.evaluate import isd_eval
from isd_nb.cli.export import isd_export
from isd_nb.cli.pack import isd_pack
from isd_nb.cli.train import isd_train
from isd_nb.kernels.devices import machine

SIDE, PATIENCE = 12, 90  # pixels of the small pictures; seconds before a command counts as hanging
TINY = [
    "--recipe",
    "digits",
    "--batch-size",
    "4",
    "--set",
    "queue_size=8",
    "--set",
    "width=2",
    "--set",
    "projector=[4]",
    "--set",
    "evaluations=1",
    "--set",
    f"image_size={SIDE}",
    "--no-supervised",
    "--no-figures",
    "--device",
    "cpu",
    "--processes",
    "1",
    "--threads",
    "1",
]


@dataclass
class Case:
    "One bad input: a command, and what may and what must not happen."

    command: Callable[[], None]
    arguments: list[str]
    must_fail: bool = False  # whatever it prints, it must not go well
    keep: list[Path] = field(default_factory=list)  # files that must not change, because what they hold cannot be read
    about: str = ""


# --- one input, checked ----------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, str]:
    "Every file and link below a folder, with a sum of what it holds."
    found = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder)).decode("latin1")
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.md5(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return found


def called(
    case: Case, place: Path
) -> tuple[int, str, str]:  # exit code (1000: an exception), what was printed, the trace
    "Run the command in the folder `place`."
    out, before = io.StringIO(), os.getcwd()
    os.chdir(place)
    old = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(PATIENCE)
    try:
        with (
            patch.object(sys, "argv", [case.command.__name__, *case.arguments]),
            redirect_stdout(out),
            redirect_stderr(out),
        ):
            case.command()
        return 0, out.getvalue(), ""
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None), out.getvalue(), ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return 1000, out.getvalue(), traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        os.chdir(before)


class Hangs(Exception):
    "A command takes far longer than its input explains."


def hangs(number: int, frame: Any) -> None:
    raise Hangs(f"no end after {PATIENCE} s")


def faults(case: Case, place: Path) -> tuple[int, list[str]]:
    "The exit code, and what is wrong with how the command takes this input; `place` holds all that it may see."
    (place / "cwd").mkdir(exist_ok=True)
    before, kept = contents(place), {path: path.read_bytes() for path in case.keep}
    code, said, trace = called(case, place / "cwd")
    after, found = contents(place), []
    if trace or "Traceback (most recent" in said:
        found.append(f"a stack trace: {trace or said[said.index('Traceback') :]}")
    elif code not in (0, 1, 2):
        found.append(f"exit code {code}")
    elif code and not said.strip():
        found.append("refused without a sentence")
    if case.must_fail and not code:
        found.append(f"went well, although it cannot: {said[-300:]}")
    for name in before.keys() | after.keys():
        room = name.split("/")[0]
        if (
            before.get(name) == after.get(name)
            or room in ("out", "cache")
            or name == "cwd/runs"
            or name.startswith("cwd/runs/")
        ):
            continue
        if room == "run":
            if name not in after and (code or "checkpoints/" not in name):
                found.append(f"lost {name}")
        else:
            found.append(f"{'made' if name not in before else 'removed' if name not in after else 'changed'} {name}")
    found += [
        f"lost what {path.name} held"
        for path, content in kept.items()
        if not path.is_file() or path.read_bytes() != content
    ]
    return code, found


# --- images ----------------------------------------------------------------------------------------------------------


def pixels(rng: Random, *shape: int) -> np.ndarray:
    "Noise."
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 256, shape, dtype=np.uint8)


def good(rng: Random) -> bytes:
    "A small picture as a PNG."
    Image.fromarray(pixels(rng, SIDE, SIDE, 3)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    image.save(file := io.BytesIO(), kind, **how)
    return file.getvalue()


def odd_picture(rng: Random) -> tuple[str, bytes]:  # the ending, and the file
    "A picture that few programs expect."
    rgb, grey = Image.fromarray(pixels(rng, SIDE, SIDE, 3)), Image.fromarray(pixels(rng, SIDE, SIDE))
    deep, real = (
        pixels(rng, SIDE, SIDE).astype(np.uint16) * rng.choice([1, 16, 257]),
        pixels(rng, SIDE, SIDE).astype(np.float32),
    )
    hole = real.copy()
    hole[0, 0] = rng.choice([np.nan, np.inf, -np.inf])
    frames = [Image.fromarray(pixels(rng, SIDE, SIDE)) for _ in range(3)]
    thin = Image.fromarray(pixels(rng, 1, rng.choice([1, 2, 700]), 3))
    return rng.choice(
        [
            lambda: ("png", saved(Image.fromarray(deep), "PNG")),
            lambda: ("tif", saved(Image.fromarray(real * rng.choice([1, -1, 1e30])), "TIFF")),
            lambda: ("tif", saved(Image.fromarray(hole), "TIFF")),
            lambda: ("tif", saved(Image.fromarray(deep.astype(np.int32) * 70_000), "TIFF")),
            lambda: ("gif", saved(frames[0], "GIF", save_all=True, append_images=frames[1:])),
            lambda: ("jpg", saved(rgb.convert("CMYK"), "JPEG")),
            lambda: ("png", saved(rgb.convert("P"), "PNG", transparency=rng.randrange(256))),
            lambda: ("png", saved(grey.convert("1"), "PNG")),
            lambda: ("png", saved(grey.convert("LA"), "PNG")),
            lambda: ("png", saved(rgb.convert("RGBA"), "PNG")),
            lambda: ("png", saved(thin, "PNG")),
            lambda: ("tif", saved(rgb.convert("LAB"), "TIFF")),
            lambda: ("webp", saved(rgb, "WEBP")),
            lambda: ("jpg", saved(rgb, "PNG")),
            lambda: ("tif", saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])),
            lambda: ("bmp", saved(rgb, "BMP")),
        ]
    )()


def bad_picture(rng: Random) -> tuple[str, bytes]:
    "A file that is no picture, or no whole one."
    ending, whole = odd_picture(rng) if rng.random() < 0.5 else ("png", good(rng))
    at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
    huge = (
        b"\x89PNG\r\n\x1a\n"
        + (13).to_bytes(4, "big")
        + b"IHDR"
        + (200_000).to_bytes(4, "big") * 2
        + b"\x08\x02\0\0\0"
        + bytes(4)
    )
    return ending, rng.choice(
        [
            whole[:at],
            whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :],
            b"",
            b"not a picture",
            rng.randbytes(200),
            huge,
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            whole[:at] + rng.randbytes(30) + whole[at:],
            whole * 2,
        ]
    )


NAMES = [
    "a",
    "b",
    "c d",
    "ä",
    "日本",
    "🙂",
    "-x",
    "a;b",
    "$HOME",
    "'q'",
    "new\nline",
    "tab\t",
    "x" * 120,
    ".hidden",
    "__MACOSX",
    "@eaDir",
    "con",
    "%s",
    "{}",
    "...",
]


def write(path: Path, content: bytes) -> None:
    "Write a file and the folders above it; a name that cannot be is left out."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError:
        pass


def classes(folder: Path, rng: Random, names: list[str], each: int) -> None:
    "Good pictures in folders."
    for name in names:
        for i in range(each):
            write(folder / name / f"{i}.png", good(rng))


# --- kinds of input --------------------------------------------------------------------------------------------------


def reader(place: Path, rng: Random, encoder: Path, data: str | None = None) -> Case:
    "A command that reads the images of data/."
    spec, cache = data or f"folder:{place / 'data'}", ["--root", str(place / "cache")]
    if rng.random() < 0.1:
        return Case(isd_train, [*TINY, "--steps", "1", "--data", spec, "--dry-run", *cache])
    if rng.random() < 0.2:
        return Case(isd_pack, [spec, str(place / "out" / "packed"), *rng.choice([["--size", "8"], []]), *cache])
    if rng.random() < 0.5:
        return Case(
            isd_embed, [str(encoder), "--data", spec, "--out", str(place / "out" / "f.npy"), "--size", "8", *cache]
        )
    return Case(isd_eval, ["--encoder", str(encoder), "--data", spec, "--size", "8", *cache])


def images(place: Path, rng: Random, made: Path) -> Case:
    "Some of the pictures are odd, some are none."
    for name in ("a", "b"):
        for i in range(rng.randrange(1, 5)):
            ending, content = rng.choice([odd_picture, bad_picture, lambda r: ("png", good(r))])(rng)
            write(place / "data" / name / f"{i}.{ending}", content)
    return reader(place, rng, made / "encoder.safetensors")


def twists(spot: Path, data: Path, made: Path, rng: Random) -> list[Callable[[], Any]]:
    "What else may lie in a folder."
    return [
        lambda: write(spot / "loose.png", good(rng)),
        lambda: (spot / "empty").mkdir(exist_ok=True),
        lambda: (spot / "loop").symlink_to(data),
        lambda: (spot / "broken.png").symlink_to("nowhere"),
        lambda: (spot / "dir.png").mkdir(exist_ok=True),
        lambda: os.mkfifo(spot / "pipe.png"),
        lambda: (spot / "link.png").symlink_to(made / "one.png"),
        lambda: (spot / "Thumbs.db").write_bytes(b"x"),
        lambda: write(Path(os.fsdecode(os.fsencode(spot) + b"/caf\xe9")) / "1.png", good(rng)),
        lambda: (spot / "val_annotations.txt").write_bytes(
            rng.choice([b"", b"a\tb\n", rng.randbytes(40), b"0.png\ta\n"])
        ),
    ]


def folders(place: Path, rng: Random, made: Path) -> Case:
    "Folders in an order that no one has thought of."
    data = place / "data"
    data.mkdir()
    for _ in range(rng.randrange(1, 4)):
        part = rng.choice(
            [
                "",
                "train",
                "Train",
                "test",
                "val",
                "valid",
                "validation",
                "dev",
                "images/train",
                "images/val",
                "set",
                "training",
                "0",
            ]
        )
        classes(data / part, rng, rng.sample(NAMES, rng.randrange(0, 4)), rng.randrange(0, 4))
    for _ in range(rng.randrange(0, 3)):
        spot = rng.choice([p for p in data.rglob("*") if p.is_dir() and not p.is_symlink()] or [data])
        with suppress(FileExistsError):
            rng.choice(twists(spot, data, made, rng))()
    wrong = [
        f"folder:{data}/none",
        "folder:",
        "digit",
        "torchvision:Nothing",
        "folder:" + "y" * 300,
        f"folder:{made / 'one.png'}",
        "",
        "folder:\0",
    ]
    return reader(place, rng, made / "encoder.safetensors", rng.choice(wrong) if rng.random() < 0.1 else None)


def damaged(whole: bytes, rng: Random) -> bytes:
    "A file that is cut off, or changed at one or more places."
    at = rng.randrange(len(whole))
    kind = rng.randrange(5)
    if kind == 0:
        return whole[:at]
    if kind == 1:
        return whole[:at] + rng.randbytes(rng.randrange(1, 20)) + whole[at:]
    if kind == 2:
        return rng.choice([b"", b"{}", b"[]", b"null", b"\x80\x02.", rng.randbytes(60), b'{"rows": 3}'])
    changed = bytearray(whole)
    for _ in range(1 if kind == 3 else 20):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def is_json(content: bytes) -> bool:
    try:
        json.loads(content)
        return True
    except ValueError:
        return False


def encoders(place: Path, rng: Random, made: Path) -> Case:
    "Weights that are damaged, in our format and in PyTorch's."
    source = made / rng.choice(["encoder.safetensors", "resnet.pt"])
    shutil.copytree(made / "images", place / "data")
    weights = place / "out" / f"weights{source.suffix}"
    write(weights, damaged(source.read_bytes(), rng))
    if rng.random() < 0.2:
        return Case(isd_export, [str(weights), "--out", str(place / "out" / "net.pt"), "--size", "8"])
    return reader(place, rng, weights)


def packed(place: Path, rng: Random, made: Path) -> Case:
    "Packed sets that are damaged: what they state about themselves, their arrays, their names."
    shutil.copytree(made / "packed", place / "data")
    path = rng.choice(sorted((place / "data").iterdir()))
    path.write_bytes(damaged(path.read_bytes(), rng))
    return reader(place, rng, made / "encoder.safetensors", f"packed:{place / 'data'}")


def checkpoints(place: Path, rng: Random, made: Path) -> Case:
    "A run that was stopped, with damaged checkpoints."
    shutil.copytree(made / "stopped", place / "run")
    shutil.copytree(made / "flat", place / "data")
    states = sorted((place / "run" / "checkpoints").glob("state_*.pt"))
    broken = 0
    for path in states:
        whole = path.read_bytes()
        path.write_bytes(content := damaged(whole, rng))
        broken += content[: len(whole) // 2] != whole[: len(whole) // 2] and len(content) < len(whole) // 2
    return Case(
        isd_train,
        [
            "--out",
            str(place / "run"),
            "--resume",
            "--data",
            f"folder:{place / 'data'}",
            *TINY[-8:],
            "--root",
            str(place / "cache"),
        ],
        must_fail=broken == len(states),
        about="all checkpoints cut off" if broken == len(states) else "",
    )


VALUES = [
    "",
    "nan",
    "inf",
    "-1",
    "0",
    "1e99",
    "true",
    "null",
    "[]",
    "[1,2,3]",
    "[0]",
    '"x"',
    "{}",
    '{"blur": 5}',
    '{"x": 1}',
    "9" * 30,
    "[null]",
    "0.5",
    "[0.9, 2]",
    "a=b",
    "'",
]
SETTINGS = [
    "image_size",
    "stored_size",
    "white",
    "views",
    "key_views",
    "backbone",
    "width",
    "widths",
    "blocks",
    "stem",
    "init",
    "projector",
    "predictor",
    "batch_norm",
    "batch_norm_splits",
    "method",
    "queue_size",
    "student_temperature",
    "teacher_temperature",
    "momentum",
    "options",
    "epochs",
    "steps",
    "batch_size",
    "accumulate",
    "optimizer",
    "learning_rate",
    "schedule",
    "warmup_steps",
    "weight_decay",
    "evaluations",
    "precision",
    "compile",
    "seed",
    "nothing",
    "name",
    "data",
]


def settings(place: Path, rng: Random, made: Path) -> Case:
    "Values of the wrong kind, by option or by --set; for a run that is only estimated, and for an evaluation."
    shutil.copytree(made / "images", place / "data")
    data, cache = f"folder:{place / 'data'}", ["--root", str(place / "cache")]
    pairs = [f"{rng.choice(SETTINGS)}={rng.choice(VALUES)}" for _ in range(rng.randrange(1, 3))]
    option = rng.choice(
        [
            ["--epochs", rng.choice(VALUES)],
            ["--seed", rng.choice(VALUES)],
            ["--method", rng.choice(["isd", "byol", "x", "os:path", "a:b", ":", *VALUES])],
            ["--device", rng.choice(VALUES)],
            ["--threads", rng.choice(VALUES)],
            ["--processes", rng.choice(["3", "-2", "x"])],
            ["--backbone", rng.choice(VALUES)],
            ["--init", rng.choice(["nowhere", "shipped:none", str(made / "one.png"), *VALUES])],
            ["--recipe", rng.choice(VALUES)],
            ["--nothing"],
            [],
        ]
    )
    if rng.random() < 0.6:
        return Case(
            isd_train,
            [
                *TINY,
                "--steps",
                "1",
                "--data",
                data,
                "--dry-run",
                *cache,
                *(o for pair in pairs for o in ("--set", pair)),
                *option,
            ],
        )
    wrong = rng.choice(
        [
            ["--protocol", "linear", "--epochs", rng.choice(VALUES)],
            ["--protocol", rng.choice(VALUES)],
            ["--fractions", rng.choice(VALUES)],
            ["--seeds", rng.choice(VALUES), "--protocol", "few-labels", "--min-steps", "1", "--epochs", "1"],
            ["--backbone-rate", rng.choice(VALUES)],
            ["--size", rng.choice(["0", "1", "-3", "x"])],
            ["--encoder", rng.choice(["x@y", "timm:none", "shipped:x", "torchvision:none", *VALUES])],
        ]
    )
    return Case(
        isd_eval, ["--encoder", str(made / "encoder.safetensors"), "--data", data, "--size", "8", *cache, *wrong]
    )


def answers(place: Path, rng: Random, made: Path) -> Case:
    "Files of a finished run that are damaged: what was saved, its settings, its encoders, its rows."
    shutil.copytree(made / "finished", place / "run")
    path = (
        place
        / "run"
        / rng.choice(["eval/knn.json"] * 4 + ["config.json", "metrics.csv", "summary.json", "encoder.safetensors"])
    )
    path.write_bytes(content := damaged(path.read_bytes(), rng))
    keep = [path] if path.name == "knn.json" and not is_json(content) else []
    return Case(isd_eval, [str(place / "run"), "--root", str(place / "cache")], keep=keep, about=path.name)


KINDS: dict[Callable[[Path, Random, Path], Case], int] = {
    images: 6,
    folders: 6,
    encoders: 4,
    settings: 4,
    answers: 3,
    checkpoints: 1,
    packed: 1,
}  # how often


# --- what the inputs are made from -----------------------------------------------------------------------------------


def prepare(made: Path) -> None:
    "Small sets, an encoder, a finished and a stopped run."
    import torch
    from torchvision.models import resnet18

    made.mkdir()
    rng = Random(0)
    classes(made / "images", rng, ["a", "b"], 5)
    classes(made / "flat", rng, ["."], 6)
    write(made / "one.png", good(rng))
    for name, data in (("finished", "images"), ("stopped", "flat")):
        case = Case(
            isd_train,
            [
                *TINY,
                "--steps",
                "2",
                "--data",
                f"folder:{made / data}",
                "--out",
                str(made / name),
                "--root",
                str(made / "cache"),
            ],
        )
        code, said, trace = called(case, made)
        assert code == 0, said + trace
    code, said, trace = called(Case(isd_eval, [str(made / "finished"), "--root", str(made / "cache")]), made)
    assert code == 0, said + trace
    shutil.copy(made / "finished" / "encoder.safetensors", made / "encoder.safetensors")
    pack = [f"folder:{made / 'images'}", str(made / "packed"), "--size", "8", "--root", str(made / "cache")]
    code, said, trace = called(Case(isd_pack, pack), made)
    assert code == 0, said + trace
    torch.manual_seed(0)
    narrow = {
        k: v[..., :1, :1] if v.ndim == 4 else v
        for k, v in resnet18().state_dict().items()
        if k.startswith(("conv1", "bn1", "layer1"))
    }
    torch.save({"state_dict": narrow}, made / "resnet.pt")
    rewind(made / "stopped")


def rewind(run: Path) -> None:
    "Let a finished run look like one that was stopped before its end."
    for name in ("summary.json", "encoder.safetensors", "README.md"):
        (run / name).unlink(missing_ok=True)


# --- faults put in on purpose ----------------------------------------------------------------------------------------


@contextmanager
def everywhere(name: str, home: str, wrong: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    "Replace a function of the package in every module that has imported it."
    real = getattr(sys.modules[f"isd_nb.{home}"], name)
    users = [m for n, m in sys.modules.items() if n.startswith("isd_nb.") and vars(m).get(name) is real]
    try:
        for module in users:
            setattr(module, name, wrong(real))
        yield
    finally:
        for module in users:
            setattr(module, name, real)


def raises_anything(real: Callable[..., Any]) -> Callable[..., Any]:
    def open_image(path: Path, *more: Any) -> Any:
        try:
            return real(path, *more)
        except OSError as error:
            raise SyntaxError(str(error)) from error

    return open_image


def leaves_a_note(real: Callable[..., Any]) -> Callable[..., Any]:
    def find_layout(path: Path) -> Any:
        (path / ".seen").touch()
        return real(path)

    return find_layout


def writes_beside(real: Callable[..., Any]) -> Callable[..., Any]:
    def identities(sets: Any) -> Any:
        Path("log.txt").write_text("a file in the user's folder")
        return real(sets)

    return identities


def forgets_answers(real: Callable[..., Any]) -> Callable[..., Any]:
    def rows_file(path: Path) -> Any:
        try:
            return real(path)
        except ValueError:
            return {}

    return rows_file


def begins_again(real: Callable[..., Any]) -> Callable[..., Any]:
    def load_checkpoint(folder: Path) -> Any:
        try:
            return real(folder)
        except ValueError:
            return None

    return load_checkpoint


PLANTED = {  # what: function, its module, its wrong form, the kind of input that must find it
    1: ("open_image", "data", raises_anything, images),
    2: ("find_layout", "sources.layout", leaves_a_note, folders),
    3: ("identities", "sources.door", writes_beside, encoders),
    4: ("rows_file", "protocols.answers", forgets_answers, answers),
    5: ("load_checkpoint", "protocols.storage", begins_again, checkpoints),
}


# --- all of it -------------------------------------------------------------------------------------------------------


def fuzz(
    count: int, seed: int = 0, only: Callable[..., Case] | None = None, show: bool = False, made: Path | None = None
) -> dict[str, Any]:
    "Make so many inputs, and collect what is wrong."
    rng, begun = Random(seed), time.monotonic()
    kinds = [only] * count if only else rng.choices(list(KINDS), list(KINDS.values()), k=count)
    found: list[dict[str, Any]] = []
    ends: dict[str, Counter[str]] = {kind.__name__: Counter() for kind in kinds}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if made is None:
            prepare(made := Path(folder) / "made")
        for number, kind in enumerate(kinds):
            place = Path(folder) / "input"
            place.mkdir()
            (place / "out").mkdir()
            case = kind(place, Random(f"{seed} {number}"), made)
            code, wrong = faults(case, place)
            ends[kind.__name__][{0: "done", 1000: "exception"}.get(code, "refused")] += 1
            for fault in wrong:
                call = " ".join([case.command.__name__, *case.arguments]).replace(folder, "")
                found.append(
                    dict(
                        number=number, kind=kind.__name__, fault=fault.replace(folder, ""), call=call, about=case.about
                    )
                )
                if show:
                    print(f"\n{number} {kind.__name__} ({case.about}): {call}\n{fault}", flush=True)
            shutil.rmtree(place, ignore_errors=True)
            if show and number % 100 == 99:
                print(f"{number + 1} inputs, {time.monotonic() - begun:.0f} s, {len(found)} found", flush=True)
    return dict(inputs=count, seed=seed, ends=ends, seconds=round(time.monotonic() - begun, 1), found=found)


def planted(number: int, count: int, seed: int = 0, made: Path | None = None) -> dict[str, Any]:
    "The same with a fault of ours, among inputs of the kind that can meet it."
    name, home, wrong, kind = PLANTED[number]
    with everywhere(name, home, wrong):
        return fuzz(count, seed, kind, made=made)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--planted", type=int, choices=PLANTED)
    parser.add_argument("--only", choices=[kind.__name__ for kind in KINDS])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "fuzz.json")
    options = parser.parse_args()
    if options.planted:
        result = planted(options.planted, min(options.count, 60), options.seed)
        print(
            f"fault {options.planted} ({PLANTED[options.planted][0]}): "
            f"found {len(result['found'])} times in {result['inputs']} inputs"
        )
        return 0 if result["found"] else 1
    only = next((kind for kind in KINDS if kind.__name__ == options.only), None)
    made = dict(command=" ".join(["python", "tests/fuzz.py", *sys.argv[1:]]), machine=machine())
    result = made | fuzz(options.count, options.seed, only, show=True)
    result["planted"] = {} if only else {PLANTED[n][0]: len(planted(n, 40, options.seed)["found"]) for n in PLANTED}
    print("\n".join(f"{kind}: {dict(ends)}" for kind, ends in result["ends"].items()))
    print(
        f"{result['inputs']:,} inputs in {result['seconds']:,.0f} s: {len(result['found'])} faults found; "
        f"put in on purpose and found again: {sum(map(bool, result['planted'].values()))} of {len(result['planted'])}"
    )
    if not only:
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["found"] or not all(result["planted"].values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
