"""Labels from a table, a test folder by name, zip and tar: through the one door, said, fingerprinted, and safe."""

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, call
from PIL import Image

from isd_nb.cli.compare import isd_compare
from isd_nb.cli.embed import isd_embed
from isd_nb.cli.evaluate import isd_eval
from isd_nb.cli.explore import isd_explore
from isd_nb.cli.pack import isd_pack
from isd_nb.cli.train import isd_train as train_command
from isd_nb.engine.embedding import embed_to_file
from isd_nb.errors import InputError, refusal
from isd_nb.methods.checkpoints import fit_recipe
from isd_nb.recipe import find_recipe
from isd_nb.sources.batches import EpochSampler, read_batches
from isd_nb.sources.datasets import typical_side
from isd_nb.sources.door import Sets, load_sets, load_shown
from isd_nb.sources.given import with_given
from isd_nb.sources.identity import fingerprint

Pack = Callable[[Path, Path], Path]


def write(folder: Path, *names: str) -> Path:
    "A folder with images that all differ."
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def to_zip(folder: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(folder))
    return file


def to_tar(folder: Path, file: Path) -> Path:
    with tarfile.open(file, "w") as archive:
        archive.add(folder, folder.name)  # one folder further down, as most archives are
    return file


def read(place: Path, text: str, **how: int) -> Sets:
    return load_sets(f"folder:{text}", 8, root=place / "root", **how)


SPLIT = [f"{split}/{c}/{i}.png" for split, count in (("train", 4), ("test", 2)) for c in "ab" for i in range(count)]


@pytest.mark.parametrize(("pack", "ending"), [(to_zip, "zip"), (to_tar, "tar"), (to_zip, "ZIP")])
def test_an_archive_is_the_folder_that_was_packed(pack: Pack, ending: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "set", *SPLIT)
    archive = pack(folder, tmp_path / f"packed.{ending}")
    before = sorted(tmp_path.rglob("*"))
    for memory in (4 << 30, 0):  # in memory, and decoded while training
        own, packed = read(tmp_path, str(folder), memory=memory), read(tmp_path, str(archive), memory=memory)
        for one, other in ((own.train, packed.train), (own.test, packed.test)):
            assert torch.equal(one.get(range(len(one))), other.get(range(len(other))))
            assert torch.equal(one.labels, other.labels) and one.classes == other.classes
            assert fingerprint(one) == fingerprint(other)
    assert f"packed.{ending}" in str(packed.found) and "8 images of 2 classes" in str(packed.found)
    assert len(load_shown(f"folder:{archive}", 8, 3, tmp_path / "root")[0]) == 3
    assert typical_side(f"folder:{archive}") == 9
    assert [p for p in sorted(tmp_path.rglob("*")) if "root" not in p.parts] == before  # nothing was unpacked


def test_workers_read_an_archive_each_for_itself(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", *SPLIT)
    train = read(tmp_path, str(to_zip(folder, tmp_path / "a.zip")), memory=0).train
    batches = read_batches(train, EpochSampler(8, 2, 0, 0, 8), slice(0, 2), torch.device("cpu"), workers=2)
    for indices, pixels in batches:
        assert torch.equal(pixels, train.get(indices))


def test_an_archive_that_changes_is_read_anew(tmp_path: Path) -> None:
    archive = to_zip(write(tmp_path / "one", *SPLIT), tmp_path / "a.zip")
    assert len(read(tmp_path, str(archive)).train) == 8
    to_zip(write(tmp_path / "one", "train/a/more.png"), archive)
    assert len(read(tmp_path, str(archive)).train) == 9


def test_an_archive_cannot_lead_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", *SPLIT)
    secret = write(tmp_path, "secret.png") / "secret.png"
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.add(folder, "set")
        archive.add(secret, "set/train/a/../../../../out.png")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"set/train/a/link{kind.decode()}.png")
            link.type, link.linkname = kind, str(secret)
            archive.addfile(link)
    sets = read(tmp_path, str(tmp_path / "evil.tar"))
    assert len(sets.train) == 8 and "2 members that are links" in str(sets.found) and "unsafe name" in str(sets.found)


@pytest.mark.parametrize("name", ["set.tar.gz", "set.zip", "set.7z", "set.txt"])
def test_what_is_no_archive_gets_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"something else")
    sentence = refusal(read, tmp_path, str(tmp_path / name))
    assert "\n" not in sentence and name in sentence
    assert ("gunzip" in sentence) == (name in ("set.tar.gz", "set.7z"))


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    archive = to_zip(write(tmp_path / "set", *(f"{c}/{i}.png" for c in "ab" for i in range(20))), tmp_path / "a.zip")
    data = bytearray(archive.read_bytes())
    data[data.index(b"a/3.png") + 20] ^= 255
    archive.write_bytes(data)
    with pytest.warns(UserWarning, match=r"a/3\.png"):
        sets = read(tmp_path, str(archive))
    assert len(sets.train) + len(sets.test) == 39


FLAT = [f"{i:02}.png" for i in range(20)]


@pytest.mark.parametrize("packed", [False, True])
def test_labels_come_from_a_table(packed: bool, tmp_path: Path) -> None:
    folder = write(tmp_path / "set", *FLAT, "extra.png")
    rows = "".join(f"{i:02},{'cat' if i % 2 else 'dog'}\n" for i in range(20))
    (tmp_path / "labels.csv").write_text(f"id,breed\n{rows}")
    where = to_zip(folder, tmp_path / "set.zip") if packed else folder
    sets = read(tmp_path, f"{where}?labels={tmp_path / 'labels.csv'}")
    assert sets.train.classes == ("cat", "dog") and len(sets.train) + len(sets.test) == 20
    for part in (sets.train, sets.test):
        assert [part.classes[v] for v in part.labels] == ["cat" if int(p.stem) % 2 else "dog" for p in part.paths]
    assert "labels are those of" in str(sets.found) and "1 images that labels.csv lacks" in str(sets.found)


def test_other_labels_are_other_images(tmp_path: Path) -> None:
    folder, prints = write(tmp_path / "set", *FLAT), []
    for turn in (0, 1):
        lines = [f"{name}\t{'ab'[(i // 2 + turn * (i > 9)) % 2]}" for i, name in enumerate(FLAT)]
        (tmp_path / "labels.tsv").write_text("\n".join(lines))
        prints.append(fingerprint(read(tmp_path, f"{folder}?labels={tmp_path / 'labels.tsv'}").train))
    assert prints[0] != prints[1]


def test_a_table_names_both_splits_or_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "train/1.png", "train/2.png", "train/3.png", "test/1.png")
    table = tmp_path / "labels.txt"
    table.write_text("train/1.png a\ntrain/2.png b\ntrain/3.png a\ntest/1.png b\n")
    sets = read(tmp_path, f"{folder}?labels={table}")
    assert sets.train.labels.tolist() == [0, 0, 1] and sets.test.labels.tolist() == [1]
    table.write_text("1.png a\n2.png b\n3.png a\n")
    assert "2 files of the folder have this name" in refusal(read, tmp_path, f"{folder}?labels={table}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("00.png,a\n00.png,b\n01.png,a", "names 00.png twice"),
        ("00.png,a\nabsent.png,b", "1 of its 2 files that"),
        ("00.png\n01.png", "no label"),
        ("", "is empty"),
        ("file,width,height\n00.png,1,2", "none of them is called label"),
    ],
)
def test_a_wrong_table_gets_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "set", *FLAT)
    (tmp_path / "labels.csv").write_text(text)
    sentence = refusal(read, tmp_path, f"{folder}?labels={tmp_path / 'labels.csv'}")
    assert words in sentence and "\n" not in sentence
    assert "cannot be read" in refusal(read, tmp_path, f"{folder}?labels={tmp_path / 'absent.csv'}")


def test_a_file_is_not_named_by_two_paths(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", *FLAT)
    (tmp_path / "labels.csv").write_text(f"00.png,a\n01.png,b\n02.png,b\n{folder / '00.png'},b\n")
    assert "names 00.png twice" in refusal(read, tmp_path, f"{folder}?labels={tmp_path / 'labels.csv'}")


@pytest.mark.parametrize("packed", [False, True])
def test_a_test_folder_is_named(packed: bool, tmp_path: Path) -> None:
    counts = ("pictures", 4), ("kept back", 2)
    names = [f"{split}/{c}/{i}.png" for split, count in counts for c in "ab" for i in range(count)]
    folder = write(tmp_path / "set", *names)
    where = to_tar(folder, tmp_path / "set.tar") if packed else folder
    sets = read(tmp_path, f"{where}?test=kept back")
    assert (len(sets.train), len(sets.test)) == (8, 4) and sets.train.classes == ("a", "b")
    assert not set(map(str, sets.train.paths)) & set(map(str, sets.test.paths))


def test_a_test_folder_lies_anywhere(tmp_path: Path) -> None:
    train = write(tmp_path / "set", *(f"{c}/{i}.png" for c in "ab" for i in range(3)), "c/held/9.png", "c/8.png")
    other = write(tmp_path / "other", "b/1.png", "a/2.png")
    sets = read(tmp_path, f"{train}?test={other}")
    assert (len(sets.train), len(sets.test)) == (8, 2) and sets.test.labels.tolist() == [0, 1]
    assert "none of the classes" in refusal(read, tmp_path, f"{train}?test=c/held")
    assert "is no folder with images" in refusal(read, tmp_path, f"{train}?test=absent")
    assert "training images, too" in refusal(read, tmp_path, f"{train}?test={tmp_path}")


def test_the_commands_carry_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "set", *FLAT, *(f"kept/{i}.png" for i in range(20, 24)))
    names = [*FLAT, *(f"kept/{i}.png" for i in range(20, 24))]
    (tmp_path / "labels.csv").write_text("".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(names)))
    to_zip(tmp_path / "set", tmp_path / "set.zip")
    given = ["--recipe", "digits", "--data", "folder:set.zip", "--labels", "labels.csv", "--test", "kept"]
    planned = call(train_command, tmp_path, *given, *TINY, "--dry-run")
    assert planned.returncode == 0 and "20 images of 2 classes" in planned.stdout, planned.stderr
    assert "4 images of 2 classes" in planned.stdout and "labels are those of" in planned.stdout
    plain = ["--no-figures", "--no-supervised", "--processes", "1"]
    done = call(train_command, tmp_path, *given, *TINY, *plain, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "labels=labels.csv&test=kept" in (tmp_path / "run/config.json").read_text()
    refused = call(train_command, tmp_path, "--labels", "labels.csv", "--dry-run")
    assert refused.returncode and "--data folder:PATH" in refused.stderr
    monkeypatch.chdir(tmp_path)
    count, _ = embed_to_file(lambda x: x.mean((2, 3)), "folder:set.zip?labels=labels.csv&test=kept", "f.csv", size=8)
    rows = (tmp_path / "f.csv").read_text().splitlines()
    assert count == 24 and sum(",test," in row for row in rows) == 4


def test_a_question_mark_in_a_name_is_a_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "what?labels=x", *SPLIT)
    assert len(read(tmp_path, str(folder)).train) == 8
    with pytest.raises(InputError, match="labels=FILE, test=PATH, window=CENTER,WIDTH and white=N"):
        read(tmp_path, f"{tmp_path}?label=x")



def deep(folder: Path) -> Path:
    "Files of 16 bits whose values end at 1,000."
    for number, name in enumerate(SPLIT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.linspace(number, 1000, 144, dtype=np.uint16).reshape(12, 12)).save(folder / name)
    return folder


def test_what_is_white_can_be_stated_to_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    deep(tmp_path / "deep"), write(tmp_path / "flat", *SPLIT)
    white = ("--white", "4095")
    packed = call(isd_pack, tmp_path, "folder:deep", "packed", *white)
    assert packed.returncode == 0 and "to 4095 (white), as given by white=" in packed.stdout, packed.stderr
    assert int(load_sets("packed:packed", 12).bank.get(range(8)).max()) == round(255 * 1000 / 4095)
    planned = call(train_command, tmp_path, "--data", "folder:deep", *white, *TINY, "--batch-size", "8", "--dry-run")
    assert planned.returncode == 0 and "to 4095 (white)" in planned.stdout, planned.stderr
    brightest = [embed_to_file(lambda x: x.amax((2, 3)), with_given("folder:deep", white=w), f"{w}.npy", size=12) and
                 float(np.load(f"{w}.npy").max()) for w in (None, 4095.0, 2000.0)]
    assert brightest == pytest.approx([1000 / 1023, 1000 / 4095, 1000 / 2000], abs=0.003)
    unused = load_sets("folder:flat?white=4095", 12, root=tmp_path)
    assert "white is for values of more than 8 bits, and no file that was opened has any" in str(unused.found)
    assert unused.bank.levels == {"whole": (0, 4095), "real": (0, 4095)}  # for files that were not opened
    for name, words in (("flat", ""), ("deep", "whole numbers of more than 8 bits from 0 (black) to 400 (white), as ")):
        stated = str(load_sets(f"folder:{name}?window=40,400&white=400", 12, root=tmp_path).found)
        assert "window is for DICOM files, and no file that was opened is one" in stated
        assert words in stated and "floating-point" not in stated
    tiff = np.linspace(0, 900, 144, dtype=np.float32).reshape(12, 12)
    Image.fromarray(tiff).save(tmp_path / "deep" / Path(SPLIT[0]).with_suffix(".tif"))
    both = str(load_sets("folder:deep?white=400", 12, root=tmp_path).found)
    assert "numbers of more than 8 bits from 0 (black) to 400 (white) and floating-point numbers from 0" in both
    refused = refusal(load_sets, "folder:deep?white=3", 12, white=2.0)
    assert "white is 2 in the recipe and 3 in folder:deep?white=3" in refused
    for wrong in ("0", "-1", "nan", "inf", "bright"):
        assert f"not '{wrong}'" in refusal(load_sets, f"folder:deep?white={wrong}", 12)


def test_packed_images_that_have_no_room_are_counted_in_units_that_show_them(tmp_path: Path,
                                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "flat", *SPLIT)
    monkeypatch.setattr("isd_nb.sources.packed.shutil.disk_usage", lambda place: SimpleNamespace(free=900))
    said = call(isd_pack, tmp_path, "folder:flat", "packed")
    assert said.returncode == 2 and "kB, and " in said.stderr and "has 900B free" in said.stderr


def write_dicom(path: Path, stored: np.ndarray, **tags: object) -> Path:
    "A slice as a CT writes it: 12 bits, an intercept of -1024."
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = stored.astype("<u2").tobytes()
    for tag, value in tags.items():
        setattr(data, tag, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def test_dicom_is_seen_through_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = np.arange(64).reshape(8, 8) * 60  # Hounsfield units from -1024 to 2756
    for number in range(8):
        write_dicom(tmp_path / "own" / "ab"[number % 2] / f"{number}.dcm", stored, WindowCenter=40, WindowWidth=400)
        write_dicom(tmp_path / "bare" / "ab"[number % 2] / f"{number}.DCM", stored)

    def seen(black: float, white: float) -> torch.Tensor:
        return torch.from_numpy((255 * (stored - 1024 - black) / (white - black)).clip(0, 255).round()).byte()
    own, bare = (read(tmp_path, str(tmp_path / name)) for name in ("own", "bare"))
    assert torch.equal(own.train.get([0])[0, 0], seen(-160, 239)) and own.train.shape == (1, 8, 8)
    assert torch.equal(bare.train.get([0])[0, 0], seen(-1024, 2756))  # the range of the set
    assert "through a window" in str(own.found) and "as the values of the set suggest" in str(bare.found)
    for memory in (4 << 30, 0):
        wide = read(tmp_path, f"{tmp_path / 'own'}?window=500,2000", memory=memory)
        assert torch.equal(wide.train.get([0])[0, 0], seen(-500, 1499))
        assert "DICOM files are seen from -500 (black) to 1499 (white), as given by window=" in str(wide.found)
    packed = read(tmp_path, f"{to_zip(tmp_path / 'own', tmp_path / 'own.zip')}?window=500,2000")
    assert torch.equal(packed.train.images, wide.train.get(range(len(wide.train)))[:, :1])
    assert len({fingerprint(sets.train) for sets in (own, wide)}) == 2
    write_dicom(tmp_path / "own" / "a" / "9.dcm", stored, NumberOfFrames=2)
    assert "2 frames" in refusal(read, tmp_path, str(tmp_path / "own"))
    assert "CENTER,WIDTH" in refusal(read, tmp_path, f"{tmp_path / 'own'}?window=40")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    assert "isd_nb[dicom]" in refusal(read, tmp_path, str(tmp_path / "bare"))


def test_a_named_test_folder_is_not_trained_on_through_a_link(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        for i, c in enumerate("aaabbb"):
            (folder / c).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 9 * i).save(folder / c / f"{folder.name}{i}.png")
    home = tmp_path / "set"
    for folder in (home, tmp_path / "away", home / "deep"):
        fill(folder)
    (home / "kept").symlink_to(tmp_path / "away")
    (home / "again").symlink_to("deep")
    away = "deep again", "away"
    for named, (other, linked) in {"kept": away, tmp_path / "away": away, "again": ("kept", "deep")}.items():
        sets = read(tmp_path, f"{home}?test={named}")
        assert {path.name[:-5] for path in sets.test.paths} == {linked}
        assert not any(path.name.startswith(linked) for path in sets.train.paths)
        assert {*sets.train.classes} == {"a", "b", *other.split()}


@pytest.mark.parametrize("damage", ["bank_8_names.npz", "bank_8.npy", "bank_8_labels.npy", "about.json"])
def test_a_damaged_packed_set_is_refused_in_a_sentence(damage: str, tmp_path: Path) -> None:
    pets = write(tmp_path / "pets", *(f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(20)))
    assert call(isd_pack, tmp_path, f"folder:{pets}", "packed", "--size", "8", "--root", "cache").returncode == 0
    file = tmp_path / "packed" / damage
    whole = file.read_bytes()
    for bad in (whole[:len(whole) // 2], whole[:60] + b"{((" + whole[63:], whole.replace(b"shape", b"shame")):
        file.write_bytes(bad)
        try:
            load_sets(f"packed:{tmp_path / 'packed'}", 8)
        except InputError as refused:
            assert "pack" in str(refused)
    file.write_bytes(whole[:40])
    with pytest.raises(InputError, match=r"isd_pack|pack the images again"):
        load_sets(f"packed:{tmp_path / 'packed'}", 8)


def test_digits_are_packed_whole(tmp_path: Path) -> None:
    "On the canvas of their recipe, which has room for them; networks of other libraries begin at 32 pixels, as before."
    said = call(isd_pack, tmp_path, "digits", "packed").stdout
    images = load_sets(f"packed:{tmp_path / 'packed'}", 16).bank.images[:, 0]
    inner = images[:, 1:-1, 1:-1].flatten(1).sum(1)
    edge = images.flatten(1).sum(1) - inner
    assert "--set image_size=16" in said and edge.sum() < 0.05 * inner.sum()
    assert fit_recipe(find_recipe("digits"), "timm:resnet10t", None, typical_side("digits")).image_size == 32


@pytest.mark.parametrize(("command", "words"), [
    (train_command, "--data folder:small --processes 1 --out run"),
    (isd_pack, "folder:small packed --size 8"),
    (isd_compare, "--data folder:small --methods isd --out out"),
    (isd_eval, "--encoder shipped:digits --data folder:small"),
    (isd_embed, "shipped:digits --data folder:small --out f.npy"),
    (isd_explore, "--encoder shipped:digits --data folder:small --report tables"),
], ids=["isd_train", "isd_pack", "isd_compare", "isd_eval", "isd_embed", "isd_explore"])
@pytest.mark.usefixtures("small")
def test_a_window_of_a_command_reaches_the_files(command: Callable[[], None], words: str, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(window: str) -> str:
        said = call(command, tmp_path, *words.split(), "--window", window)
        assert said.returncode == 2, said.stdout + said.stderr
        return said.stderr

    def as_read(window: str) -> None:
        raise InputError(f"read through {window}")
    monkeypatch.setattr("isd_nb.sources.door.parse_window", as_read)
    assert "read through 40,400" in refused("40,400")
    assert "CENTER,WIDTH" in refused("40")
