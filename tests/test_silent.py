"""Input that was once read in part, or as something else, without a word: it is right, said or refused now."""

import re
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call
from PIL import Image

from isd_nb.cli.train import isd_train
from isd_nb.data import ImageSet, open_image
from isd_nb.encoders import load_encoder
from isd_nb.engine.runs import open_run
from isd_nb.errors import InputError, refusal
from isd_nb.evaluation import knn_accuracy, linear_accuracy
from isd_nb.loss import soft_label_loss, soft_labels, streaming_soft_label_loss
from isd_nb.queue import AnchorQueue
from isd_nb.recipe import recipes
from isd_nb.sources.datasets import from_dataset
from isd_nb.sources.door import Sets, load_sets
from isd_nb.teacher import EMATeacher
from isd_nb.views import Views


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (8, 8, 3), dtype=np.uint8)


def write(folder: Path, *names: str) -> Path:
    "A folder with images that all differ."
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(folder / name)
    return folder


def read(place: Path, text: Path | str = "") -> Sets:
    return load_sets(f"folder:{text or place / 'set'}", 8, root=place / "root")


def classes(*splits: str) -> list[str]:
    return [f"{split}/{c}/{i}.png" for split in splits for c in "ab" for i in range(5)]


@pytest.mark.parametrize(
    "pair",
    ["seg_train/seg_train seg_test/seg_test", "train_images test_images", "train2017 val2017", "trainData testData",
     "01_train 02_test", "Cars-Training cars_testing", "train-set valid-set"],
)  # fmt: skip
def test_a_pair_of_names_is_a_split(pair: str, tmp_path: Path) -> None:
    sets = read(tmp_path, write(tmp_path / "set", *classes(*pair.split())))
    assert sets.train.classes == ("a", "b") and len(sets.train) == len(sets.test) == 10


@pytest.mark.parametrize("names", [("trainval", "test"), ("train_station", "test_tube", "bus")])
def test_other_names_are_no_pair(names: tuple[str, ...], tmp_path: Path) -> None:
    write(tmp_path / "set", *classes(*names))
    if "test" in names:
        assert "but no train/" in refusal(read, tmp_path)
    else:
        assert read(tmp_path).train.classes == tuple(sorted(names))


def test_classes_that_are_split_each_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "set", *(f"{c}/{s}/{i}.png" for c in ("cat", "dog") for s in ("train", "test") for i in range(3)))
    assert "put the splits above the classes" in refusal(read, tmp_path)


def test_what_a_folder_lacks_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", *classes("train", "test"), *(f"train/A/{i}.png" for i in range(3)))
    (folder / "train" / "c").mkdir()
    (folder / "train" / "a" / "dead.png").symlink_to("nowhere")
    shutil.copy(folder / "train/a/0.png", folder / "test/a/0.png")
    said = str(read(tmp_path).found)
    for words in ("1 folders without a file (in train/c/ 1)", "1 links that lead nowhere", "spelling only: A and a",
                  "1 of the 10 images to test on are training images, too"):
        assert words in said


def test_no_accuracy_of_one_tested_class(tmp_path: Path) -> None:
    sets = read(tmp_path, write(tmp_path / "set", *(f"a/{i}.png" for i in range(5)), "b/0.png"))
    assert "All images to test on are of one class" in refusal(sets.to_score)


NAMES = [f"{i:02}.png" for i in range(10)]
LINES = [f"{name},{'dog' if i % 2 else 'cat'}" for i, name in enumerate(NAMES)]
TABLES: dict[str, tuple[bytes, str]] = {
    "UTF-16": ("\n".join(LINES).encode("utf-16"), "of 2 classes"),
    "quotes after blanks": ("\n".join(line.replace(",", ', "') + '"' for line in LINES).encode(), "of 2 classes"),
    "more columns": (("file,label,width\n" + ",9\n".join(LINES) + ",8").encode(), "not read: width"),
    "splits": (("file,label,split\n" + ",train\n".join(LINES) + ",test").encode(), "and splits (its column split)"),
    "another name": (("file,width\n" + "\n".join(LINES)).encode(), "(its column width)"),
    "case": ("\n".join(LINES).replace("dog", "Cat", 2).encode(), "spelling only: Cat and cat"),
    "1 and 1.0": ("\n".join(LINES).replace("dog", "1", 2).replace("dog", "1.0").encode(), "spelling only: 1 and 1.0"),
    "several": ("\n".join(LINES).replace("dog", "cat|dog", 2).encode(), "list others: cat|dog; an image has one class"),
    "measured": ("\n".join(f"{name},{(i + 1) * 0.37:.2f}" for i, name in enumerate(NAMES)).encode(), "of these 10 num"),
    "no label": ("\n".join(LINES).replace("dog", "nan", 2).encode(), "stand for no label elsewhere: nan"),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_what_is_read_of_a_table_is_said(case: str, tmp_path: Path) -> None:
    folder, (text, words) = write(tmp_path / "set", *NAMES), TABLES[case]
    (tmp_path / "labels.csv").write_bytes(text)
    sets = read(tmp_path, f"{folder}?labels={tmp_path / 'labels.csv'}")
    assert words in str(sets.found) and not any('"' in name for name in sets.train.classes)


def test_a_table_states_what_is_tested_on(tmp_path: Path) -> None:
    folder, splits = write(tmp_path / "set", *NAMES), ["train"] * 5 + ["test"] * 3 + ["val"] * 2
    table = tmp_path / "labels.csv"
    table.write_text("file,label,Split\n" + "\n".join(f"{line},{s}" for line, s in zip(LINES, splits)))
    sets = read(tmp_path, f"{folder}?labels={table}")
    named = [sorted(path.name for path in images.paths) for images in (sets.train, sets.test)]
    assert named == [NAMES[:5], NAMES[5:8]]
    assert "3 images of 2 classes of the split test in labels.csv" in str(sets.found)
    assert "2 images of the split val in labels.csv" in str(sets.found)
    table.write_text(table.read_text().replace("test", "holdout", 1))
    words = "line 7 of .* has 'holdout' in its column Split: expected train, and test, val"
    assert re.search(words, refusal(read, tmp_path, f"{folder}?labels={table}"))


def test_what_is_held_out_of_a_table_has_every_class(tmp_path: Path) -> None:
    names = [f"{i:02}.png" for i in range(40)]
    folder, table = write(tmp_path / "set", *names), tmp_path / "labels.csv"
    table.write_text("\n".join(f"{name},{'cat' if i % 4 else 'dog'}" for i, name in enumerate(names) if i < 30))
    sets = read(tmp_path, f"{folder}?labels={table}")
    assert [part.labels.bincount().tolist() for part in (sets.train, sets.test)] == [[18, 6], [4, 2]]
    assert "6 images of 2 classes that are held out" in str(sets.found)
    for part in (sets.train, sets.test):
        assert all((int(path.stem) % 4 == 0) == (label == 1) for path, label in zip(part.paths, part.labels.tolist()))


def test_floats_of_255_are_no_images() -> None:
    bright = torch.full((2, 1, 16, 16), 255.0)
    views, encoder = Views(recipes["digits"].views, 16), load_encoder("shipped:digits")
    for take in (lambda images: views(images, torch.Generator().manual_seed(0)), encoder):
        assert "values from 0 to 1, not up to 255" in refusal(take, bright)
        assert take(bright / 255).isfinite().all()


def test_folders_that_are_splits_decide(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", *(f"{split}/{name}" for split in ("train", "test") for name in NAMES))
    table = tmp_path / "labels.csv"
    lines = [f"{split}/{line},train" for split in ("train", "test") for line in LINES]
    table.write_text("\n".join(["file,label,split", *lines]))
    found = str(read(tmp_path, f"{folder}?labels={table}").found)
    assert "10 images of 2 classes in" in found and "not read: split" in found


@pytest.mark.parametrize("marks", ['"', '""'])
def test_a_quotation_mark_does_not_swallow_lines(marks: str, tmp_path: Path) -> None:
    folder, lines = write(tmp_path / "set", *NAMES), list(LINES)
    for row, _ in zip((3, 6), marks):
        lines[row] = lines[row].replace(",", ',"')
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    assert "labels.csv cannot be read" in refusal(read, tmp_path, f"{folder}?labels={tmp_path / 'labels.csv'}")


def test_a_table_cannot_test_on_what_was_never_trained(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", *(f"train/{n}" for n in NAMES), *(f"test/t{n}" for n in NAMES))
    (tmp_path / "labels.csv").write_text("\n".join([*LINES, *(f"t{name},fish" for name in NAMES)]))
    assert "the training images lack: fish" in refusal(read, tmp_path, f"{folder}?labels={tmp_path / 'labels.csv'}")


def test_a_tar_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    write(tmp_path / "set", *classes("train", "test"))
    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            archive.add(tmp_path / "set" / split, split)
    train, test = ((tmp_path / f"{split}.tar").read_bytes() for split in ("train", "test"))
    with tarfile.open(tmp_path / "train.tar") as archive:
        ends = [member.offset for member in archive.getmembers()][4:]
    damaged = bytearray(train)
    damaged[ends[2] + 148] ^= 1  # in a header's sum
    cases = {"a second tar": train + test, "cut off": train[: ends[1]], "is damaged": train[: ends[1] + 99]}
    cases["damaged after"] = bytes(damaged)
    for words, data in cases.items():
        (tmp_path / "odd.tar").write_bytes(data)
        assert words in refusal(read, tmp_path, tmp_path / "odd.tar")
    assert len(read(tmp_path, tmp_path / "train.tar").train) == 8


def deep_png(values: np.ndarray) -> bytes:  # (H, W, 3)
    "Pillow reads such files and does not write them."
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def clear(path: Path, values: np.ndarray) -> None:
    Image.fromarray(np.dstack([values, values[..., 0]])).save(path)


def white_sprite(path: Path, values: np.ndarray) -> None:
    clear(path, np.dstack([np.full((8, 8, 3), 255, np.uint8), values[..., :0]]))


def frames(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path, save_all=True, append_images=[Image.fromarray(255 - values)])


PICTURES: dict[str, tuple[str, Callable[[Path, np.ndarray], object], str]] = {
    "transparent": ("png", clear, "10 of 10 files have a channel of transparency"),
    "white on nothing": ("png", white_sprite, "every pixel of every image is 255"),
    "animated": ("gif", frames, "10 of 10 files hold several pictures"),
    "pages": ("tif", frames, "10 of 10 files hold several pictures"),
    "16 bits of colour": ("png", lambda p, v: p.write_bytes(deep_png(v.astype(int) * 257)), "the upper 8 are read"),
    "12 of 16 bits of colour": ("png", lambda p, v: p.write_bytes(deep_png(v.astype(int) * 16)), "reach 15 of 255"),
    "numbers of classes": ("png", lambda p, v: Image.fromarray(v[..., 0] // 64).save(p), "lie between 0 and 3 of 255"),
}  # fmt: skip


@pytest.mark.parametrize("case", PICTURES)
def test_what_pixels_hold_is_said(case: str, tmp_path: Path) -> None:
    ending, save, words = PICTURES[case]
    for i in range(10):
        (path := tmp_path / "set" / "ab"[i % 2] / f"{i}.{ending}").parent.mkdir(parents=True, exist_ok=True)
        save(path, pixels(i))
    try:
        said = str(read(tmp_path).found)
    except InputError as error:
        said = str(error)
    assert words in said


def tiff(values: np.ndarray, photometric: int, kind: int) -> bytes:  # (H, W); 0: white is zero; 1 unsigned, 2 signed
    "A grey TIFF with tags that Pillow does not write."
    height, width, data = *values.shape, values.tobytes()
    tags = [(256, width), (257, height), (258, 8 * values.itemsize), (259, 1), (262, photometric), (273, 134), (277, 1),
            (278, height), (279, len(data)), (339, kind)]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries).ljust(134, b"\0") + data


def test_white_is_zero_and_signed_bytes(tmp_path: Path) -> None:
    values = pixels(0, 8, 8)
    for name, data in (("deep", tiff(values.astype("<u2") * 257, 0, 1)), ("plain", tiff(values, 0, 1))):
        (tmp_path / f"{name}.tif").write_bytes(data)
        assert np.array_equal(np.asarray(open_image(tmp_path / f"{name}.tif")), 255 - values)
    (tmp_path / "signed.tif").write_bytes(tiff(values.astype(np.int8), 1, 2))
    with pytest.raises(OSError, match="signed numbers"):
        open_image(tmp_path / "signed.tif")


def test_rows_by_anything_that_numbers_them() -> None:
    images = ImageSet(pixels(0, 6, 1, 4, 4), np.arange(6), np.array(list("abcdef")))
    for rows in (np.array([4, 2], ">i2"), np.arange(5)[2:5:2][::-1], slice(4, 1, -2), np.array([4, 2], np.uint8)):
        assert images.subset(rows).labels.tolist() == [4, 2] and images.get(rows).equal(images.images[[4, 2]])
    assert len(images.get([])) == 0
    for rows in ([0.5], ["a"], np.ones(5, bool), [[1], [2, 3]]):
        assert "rows" in refusal(images.subset, rows) and "rows" in refusal(images.get, rows)


def test_numbers_that_are_no_classes() -> None:
    features, labels = torch.eye(4), np.arange(4) + 2**40
    assert "number the classes anew" in refusal(ImageSet, pixels(0, 4, 1, 2, 2), labels)
    for accuracy in (knn_accuracy, linear_accuracy):
        assert "number the classes anew" in refusal(accuracy, features, labels, features, labels)


@pytest.mark.parametrize("given", [np.eye(3, dtype=np.float32), [[1.0, 0.0, 0.0]], torch.eye(3, dtype=torch.int64)])
def test_vectors_are_tensors(given: object) -> None:
    other = torch.eye(3)
    for loss in (soft_label_loss, streaming_soft_label_loss):
        assert "must be a tensor" in refusal(loss, given, other, other)
        assert "must be a tensor" in refusal(loss, other, given, other)
    assert "must be a tensor" in refusal(soft_labels, other, given)
    assert "keys must be" in refusal(AnchorQueue(4, 3).enqueue, given)


def test_settings_are_numbers() -> None:
    assert "temperature" in refusal(soft_labels, torch.eye(3), torch.eye(3), "a")
    assert "a size and a dim" in refusal(AnchorQueue, 4.0, 3)
    for block in (0, -3, 2.5, "x"):
        assert "anchors are read at a time" in refusal(streaming_soft_label_loss, *[torch.eye(3)] * 3, block=block)
    for momentum in ("0.9", None, float("nan")):
        assert "must lie in [0, 1]" in refusal(EMATeacher, torch.nn.Linear(2, 2), momentum)
    teacher = EMATeacher(torch.nn.Linear(2, 2), np.float32(0.9))
    assert "a teacher follows a network" in refusal(EMATeacher, "net") and "not dict" in refusal(teacher.update, {})
    assert soft_label_loss(*[torch.eye(3)] * 3, np.float32(0.1)).isfinite()


def test_items_of_a_data_set_are_what_they_seem() -> None:
    image = pixels(0)
    assert from_dataset([(image, torch.tensor([3])), (image, np.int64(1))]).labels.tolist() == [3, 1]
    for label in ("cat", 1.0, torch.eye(3)[1]):
        assert "must be a whole number" in refusal(from_dataset, [(image, label)] * 2)
    assert from_dataset([image.transpose(2, 0, 1)]).images.equal(from_dataset([image]).images)  # its channels first
    assert "values from nan" in refusal(from_dataset, [torch.full((3, 4, 4), torch.nan)])


def test_a_resumed_run_names_its_own_images(small: Path, tmp_path: Path) -> None:
    open_run(tmp_path / "run", replace(recipes["digits"], data="folder:small"), resume=False)
    said = call(isd_train, tmp_path, "--out", "run", "--resume", "--set", "student_temperature=-1")  # refused later
    assert said.returncode == 2 and "images of about 20 pixels" in said.stdout
    (tmp_path / "else").mkdir()
    moved = call(isd_train, tmp_path / "else", "--out", "../run", "--resume", "--processes", "1")
    assert moved.returncode == 2 and f"is not a folder in {tmp_path / 'else'}" in moved.stderr
