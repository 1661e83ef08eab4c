"""Folders as people have them: what is trained on, what is tested on, what is left out, and that it is said."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, call
from PIL import Image

from isd_nb.cli.evaluate import isd_eval
from isd_nb.cli.train import isd_train as train_command
from isd_nb.data import FileList, ImageSet, formats, held_out, open_image, raster_formats
from isd_nb.errors import InputError, encodable, printable
from isd_nb.sources.digits import digits
from isd_nb.sources.door import load_sets, load_shown
from isd_nb.sources.folders import suffixes, survey
from isd_nb.sources.layout import find_layout, plan_folder, read_folder, read_plan, what_was_found
from isd_nb.sources.splits import validation_split
from isd_nb.sources.torchvision_sets import from_torchvision

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8))
DIGITS = ("--recipe", "digits", "--no-supervised", "--no-figures")


def write(folder: Path, *names: str, image: Image.Image = PICTURE) -> Path:
    "A folder with these images."
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    return folder


def split(train: str, test: str, inside: str = "") -> list[str]:
    "Names of six images to train on and two to test on, in two classes."
    return [
        *(f"{train}/{c}/{inside}{i}.png" for c in "ab" for i in range(3)),
        *(f"{test}/{c}/{inside}{i}.png" for c in "ab" for i in (7,)),
    ]


LAYOUTS = {
    name: split(*name.split())
    for name in (
        "train test",
        "Train Test",
        "TRAIN VAL",
        "training validation",
        "train valid",
        "train dev",
        "train eval",
        "training testing",
        "my_set/train my_set/test",
        "a.zip/my_set/train a.zip/my_set/val",
        "images/train images/val",
        "training_set/training_set test_set/test_set",
        "train/images val/images",
        "Training-Set Test-Set",
    )
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_splits_under_their_usual_names(tmp_path: Path, name: str) -> None:
    sets = load_sets(f"folder:{write(tmp_path / 'set', *LAYOUTS[name])}", 4, root=tmp_path)
    assert (len(sets.train), len(sets.test), sets.train.classes) == (6, 2, ("a", "b"))
    assert sets.test.labels.tolist() == [0, 1] and {p.stem for p in sets.test.paths} == {"7"} and sets.scorable()
    assert f"in {tmp_path / 'set' / name.split()[1]}" in str(sets.found)


def test_a_table_of_one_class_is_never_shown(tmp_path: Path) -> None:
    write(tmp_path / "one", *(f"all/{i}.png" for i in range(40)))
    write(tmp_path / "flat", *(f"images/{part}/{i}.png" for part in ("train", "val") for i in range(30)))
    tiny = (
        "--steps",
        "2",
        "--batch-size",
        "8",
        "--set",
        "queue_size=32",
        "--set",
        "width=4",
        "--device",
        "cpu",
        "--processes",
        "1",
    )
    for name, words in (("one", "All images are of one class, so no accuracy"), ("flat", "No labels, so no accuracy")):
        result = call(train_command, tmp_path, *DIGITS, "--data", f"folder:{name}", "--out", f"run_{name}", *tiny)
        assert result.returncode == 0 and words in result.stdout and "1.000" not in result.stdout, result.stderr
        summary = json.loads((tmp_path / f"run_{name}" / "summary.json").read_text())
        assert summary["no_accuracy"] == words and not any(key.startswith("knn") for key in summary)
    result = call(isd_eval, tmp_path, "run_one", "--device", "cpu")
    assert (
        result.returncode == 2
        and "all images are of one class, so no accuracy, and nothing can be measured on it" in result.stderr
    )


def test_files_are_taken_by_numbers_and_by_masks() -> None:
    files = FileList.of(Path("x"), list("abcde"))
    for some in (files, files.take([4, 3, 2, 1, 0])):
        names = some.all_names()
        for rows in ([1, 4], np.array([1, 4]), [False, True, False, False, True], torch.tensor([0, 1, 0, 0, 1]) > 0):
            assert some.take(rows).all_names() == [names[1], names[4]]
        assert some.take([-1, 0]).all_names() == [names[4], names[0]] and not len(some.take([]))


def test_flat_validation_images_are_not_the_test_set_of_classes(tmp_path: Path) -> None:
    names = [*(f"train/{c}/{i}.png" for c in "ab" for i in range(5)), "val/0.png", "val/1.png", "test/images/2.png"]
    sets = load_sets(f"folder:{write(tmp_path / 'set', *names)}", 4, root=tmp_path)
    assert (len(sets.train), len(sets.test), sets.test.labels.tolist()) == (8, 2, [0, 1])
    said = str(sets.found)
    assert "2 images of 2 classes that are held out of them" in said and "2 images without classes (in val/ 2)" in said
    assert "1 images of other folders (in test/ 1)" in said


AMBIGUOUS = {
    "no train": (["test/a/0.png", "val/a/0.png"], "holds test/ and val/, but no train/"),
    "classes beside a test set": (
        ["a/0.png", "b/0.png", "test/a/0.png"],
        "put the class folders to train on into train/",
    ),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path: Path, case: str) -> None:
    names, words = AMBIGUOUS[case]
    with pytest.raises(InputError, match=words):
        find_layout(write(tmp_path / "set", *names))


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    place = write(tmp_path / "set", *split("train", "valid"), "train/loose.png", "extra/c/0.png", "readme.png")
    for name in (
        "train/a/x.heic",
        "train/a/y.HEIC",
        "train/b/z.nef",
        "valid/a/scan.nii.gz",
        "train/notes.txt",
        "train/b/noending",
    ):
        (place / name).touch()
    for name in ("train/@eaDir", "train/a/.thumbnails", "__MACOSX", "$RECYCLE.BIN", "valid/lost+found"):
        write(place, f"{name}/thumb.png")
    (place / "train" / "a" / "Thumbs.db").touch()
    for _ in range(2):  # from the disk, and from the list that was kept
        sets = load_sets(f"folder:{place}", 4, root=tmp_path)
        assert (len(sets.train), len(sets.test), sets.train.classes) == (6, 2, ("a", "b"))
        assert sets.found.left_out == {
            ".heic": {"train/a": 2},
            ".nef": {"train/b": 1},
            ".txt": {"train": 1},
            "without an ending": {"train/b": 1},
            "@eaDir/": {"train": 1},
            "images beside the class folders": {"train": 1},
            ".nii.gz": {"valid/a": 1},
            "lost+found/": {"valid": 1},
            "folders of images that are no split": {"extra": 1},
            "__MACOSX/": {"": 1},
            "$RECYCLE.BIN/": {"": 1},
            "images beside the folders": {"": 1},
        }
    assert "2 .heic (in train/a/ 2)" in str(sets.found)


@pytest.mark.parametrize(
    "ending, kind",
    [
        (".jfif", "JPEG"),
        (".jpe", "JPEG"),
        (".avif", None),
        (".jp2", None),
        (".j2k", None),
        (".tga", None),
        (".apng", "PNG"),
        (".ico", None),
        (".pcx", None),
        (".dib", None),
        (".sgi", None),
        (".qoi", None),
        (".dds", None),
        (".PNM", "PPM"),
    ],
)
def test_every_raster_format_is_read(tmp_path: Path, ending: str, kind: str | None) -> None:
    PICTURE.resize((16, 16)).save(tmp_path / f"0{ending}", kind)
    assert open_image(tmp_path / f"0{ending}").mode == "RGB" and ending.lower() in suffixes


def test_nothing_that_starts_another_program_is_opened(tmp_path: Path) -> None:
    assert not {"EPS", "WMF", "HDF5", "GRIB", "BUFR", "MPEG"} & set(raster_formats) and set(formats()) <= set(
        raster_formats
    )
    PICTURE.save(tmp_path / "page.eps")
    (tmp_path / "page.eps").rename(tmp_path / "page.jpg")
    with pytest.raises(OSError, match="cannot identify"):
        open_image(tmp_path / "page.jpg")


RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))
DEEP = {
    "10 bits": (np.uint16, 1023, 1023),
    "12 bits": (np.uint16, 4095, 4095),
    "12 bits, never white": (np.uint16, 3500, 4095),
    "14 bits": (np.uint16, 16383, 16383),
    "16 bits": (np.uint16, 65535, 65535),
    "depth": (np.int32, 2000, 2000),
    "beyond 16 bits": (np.int32, 100_000, 100_000),
    "a hair above 1": (np.float32, 1.02, 1.02),
    "small shares": (np.float32, 0.01, 0.01),
    "large numbers": (np.float32, 1e7, 1e7),
}


@pytest.mark.parametrize("case", DEEP)
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_a_set_has_one_scale(tmp_path: Path, case: str, memory: int) -> None:
    kind, top, white = DEEP[case]
    for split_name in ("train", "test"):
        for c in "ab":
            write(tmp_path / "set", f"{split_name}/{c}/bright.tif", image=Image.fromarray((RAMP * top).astype(kind)))
            write(tmp_path / "set", f"{split_name}/{c}/dark.tif", image=Image.fromarray((RAMP * top / 4).astype(kind)))
    sets = load_sets(f"folder:{tmp_path / 'set'}", 64, root=tmp_path, memory=memory)
    bright, dark = sets.train.get([0])[0, 0, 0].int(), sets.train.get([1])[0, 0, 0].int()
    assert bright.unique().numel() == 64 and int(bright.max()) == round(255 * top / white)
    assert abs(int(dark.max()) - int(bright.max()) / 4) <= 1, "a darker picture stays darker"
    assert torch.equal(sets.test.get([0]), sets.train.get([0])) and f"to {white:g} (white)" in str(sets.found)
    with pytest.raises(InputError, match="white must be positive"):
        load_sets(f"folder:{tmp_path / 'set'}", 64, root=tmp_path, white=-1)
    twice = load_sets(f"folder:{tmp_path / 'set'}", 64, root=tmp_path, memory=memory, white=2 * top)
    assert abs(int(twice.train.get([0]).max()) - 128) <= 1


def test_a_stated_white_is_not_searched_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "No more files are opened than of other sets, and the words are the same; without it, up to 20,000 are."
    for name, top in (("a/1", 900), ("a/2", 3000), ("b/1", 500), ("b/2", 4000)):
        write(tmp_path / "set", f"{name}.tif", image=Image.fromarray((RAMP * top).astype(np.uint16)))
    opened: list[int] = []
    monkeypatch.setattr("isd_nb.sources.layout.survey", lambda paths, most=1_000, levels=None: (
        opened.append(most) or survey(paths, most, levels)))
    found = {}
    for white, wanted in ((None, [1_000, 20_000]), (4095, [1_000])):
        opened.clear()
        plan = replace(plan_folder(tmp_path / "set"), white=white)
        found[white] = plan.levels()["whole"], what_was_found(plan, "set").train
        assert opened == wanted
    assert found[4095] == found[None] and found[None][0] == (0, 4095)


def test_negative_numbers_are_scaled_too(tmp_path: Path) -> None:
    write(
        tmp_path,
        *(f"{c}/{i}.tif" for c in "ab" for i in range(3)),
        image=Image.fromarray((RAMP * 4095 - 1024).astype(np.int32)),
    )
    with pytest.warns(UserWarning, match=r"from -1024 \(black\) to 3071 \(white\)"):
        train, _ = read_folder(tmp_path, 64)
    assert (int(train.images.min()), int(train.images.max()), len(train.images.unique())) == (0, 255, 64)


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    write(tmp_path / "set", *split("train", "test"))
    for place in ("train", "test"):
        os.rename(os.fsencode(tmp_path / "set" / place / "b"), os.fsencode(tmp_path / "set" / place) + b"/caf\xe9")
    os.rename(os.fsencode(tmp_path / "set/train/a/0.png"), os.fsencode(tmp_path / "set/train/a") + b"/\xfc.png")
    (tmp_path / "set" / "train" / "a" / os.fsdecode(b"\xe4.\xe4")).touch()
    sets = load_sets(f"folder:{tmp_path / 'set'}", 4, root=tmp_path)
    assert sets.train.classes == ("a", os.fsdecode(b"caf\xe9")) and sets.test.labels.tolist() == [0, 1]
    for text in (str(sets.found), *map(encodable, sets.train.classes), *map(printable, sets.train.paths)):
        text.encode("utf-8")
    json.dumps(sets.found.to_json(), ensure_ascii=False).encode("utf-8")


def test_what_is_shown_costs_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "set", *(f"{part}/{c}/{i}.png" for part in ("train", "test") for c in "ab" for i in range(10)))
    opened: list[Path] = []
    monkeypatch.setattr(
        "isd_nb.sources.folders.open_image", lambda path, *rest: opened.append(path) or open_image(path, *rest)
    )
    images, _ = load_shown(f"folder:{tmp_path / 'set'}", 4, 5, tmp_path)
    assert len(images) == len(opened) == 5 and {p.parent.parent.name for p in opened} == {"test"}
    opened.clear()
    (tmp_path / "set" / "test").rename(tmp_path / "elsewhere")
    images, _ = load_shown(f"folder:{tmp_path / 'set'}", 4, 100, tmp_path)
    assert [p.name for p in images.paths] == [
        p.name for p in load_sets(f"folder:{tmp_path / 'set'}", 4, root=tmp_path).test.paths
    ]


def test_a_dry_run_and_the_run_say_what_was_read(isd_train: Callable, small: Path, tmp_path: Path) -> None:
    (small / "train" / "a" / "x.heic").touch()
    said = ["80 images of 2 classes in", "20 images of 2 classes in", "small/test", "left out: 1 .heic (in train/a/ 1)"]
    for more in (("--dry-run",), ("--no-figures", "--no-supervised", "--out", "run")):
        result = isd_train(*SMALL, *more)
        assert result.returncode == 0 and all(words in result.stdout for words in said), result.stdout + result.stderr
    found = json.loads((tmp_path / "run/config.json").read_text())["found"]
    assert (found["train"]["images"], found["test"]["images"], found["left_out"]) == (80, 20, {".heic": {"train/a": 1}})


def test_many_files_are_held_out_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(files: FileList) -> tuple[float, ImageSet, ImageSet | None]:
        images = ImageSet(None, torch.arange(len(files)) % 7, paths=files, shape=(3, 8, 8))
        begun = time.process_time()
        train, test = held_out(images)
        return time.process_time() - begun, train, test
    names = [f"{i % 7}/{i:06}.jpg" for i in range(400_000)]
    many, few = (FileList.of(Path("there"), part) for part in (names, names[:4000]))
    with monkeypatch.context() as patch:
        for method in ("name", "all_names"):
            patch.setattr(FileList, method, lambda *given: pytest.fail("names are cut out, which takes seconds"))
        usual = min(timed(few)[0] for _ in range(3))
        taken, train, test = timed(many)
    assert taken < 1000 * usual, "a hundred times as many files take about a hundred times as long"
    assert isinstance(train.paths, FileList) and train.paths.names is many.names and len(train) + len(test) == 400_000
    assert set(test.paths[:50]).isdisjoint(train.paths[:500]) and test.paths[3].parent.name == str(int(test.labels[3]))


def test_a_folder_is_in_memory_once(tmp_path: Path) -> None:
    write(tmp_path / "set", *(f"{c}/{i}.png" for c in "ab" for i in range(25)))
    plan = plan_folder(tmp_path / "set")
    train, test = read_plan(plan, 32)
    assert train.images.untyped_storage().nbytes() == 50 * 3 * 32 * 32, (
        "the training images are still where they were decoded"
    )
    assert test.images.untyped_storage().nbytes() == 10 * 3 * 32 * 32
    lazy = read_plan(plan, 32, memory=0)
    assert torch.equal(lazy[0].get(range(40)), train.images) and torch.equal(lazy[1].get(range(10)), test.images)
    assert what_was_found(plan, "x").test["images"] == 10


def test_a_set_of_torchvision_that_is_too_large_stays_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    class Listed(list):
        samples = property(lambda self: list(self))

    lazy = from_torchvision(Listed((f"in/{'ab'[i % 2]}/{i}.jpg", i % 5) for i in range(100)), 224, memory=1 << 20)
    assert isinstance(lazy.paths, FileList) and lazy.paths.folder == Path("in")
    assert (lazy.paths.name(3), lazy.paths[3]) == (b"b/3.jpg", Path("in/b/3.jpg"))
    assert lazy.images is None and len(lazy) == 100 and lazy.classes == tuple("01234")
    monkeypatch.setattr("isd_nb.sources.torchvision_sets.physical_memory", lambda: 1 << 20)
    with pytest.raises(InputError, match="which this machine's memory does not hold"):
        from_torchvision([None] * 100, 224)


def test_no_original_is_in_two_splits() -> None:
    "The digits are split by original: neither validation nor test shares a handwritten digit with training."
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    rows = train_test_split(np.arange(len(data.target)), test_size=500, stratify=data.target, random_state=0)
    train, test = digits()
    originals = torch.from_numpy(np.repeat(rows[0], 4))
    assert torch.equal(train.labels, torch.from_numpy(data.target)[originals]) and set(rows[0]).isdisjoint(rows[1])
    assert torch.equal(test.labels, torch.from_numpy(data.target[rows[1]]))
    numbers = torch.stack([originals // 256, originals % 256], 1).to(torch.uint8).view(-1, 1, 1, 2)
    kept, held = validation_split(ImageSet(numbers, train.labels), 260, copies=4, seed=1)
    sides = [{tuple(pixels) for pixels in part.images.flatten(1).tolist()} for part in (kept, held)]
    assert (len(sides[0]), len(sides[1])) == (1037, 260) and not sides[0] & sides[1]
    for part, reference in zip((kept, held), validation_split(train, 260, copies=4, seed=1)):
        assert torch.equal(part.labels, reference.labels)
