"""Damaged image files, odd folders, torchvision's sets, stray tensors, precisions, equal neighbours."""
import functools
import io
import os
import struct
import sys
import urllib.error
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save_file
from torchvision import datasets

from isd_nb.data import ImageSet, held_out, open_image, stratified_fraction, subsample_evenly, to_eight_bits
from isd_nb.errors import InputError
from isd_nb.sources.folders import class_folders, image_files
from isd_nb.encoders import BackboneConfig, Encoder, build_backbone, load_encoder, save_encoder
from isd_nb.evaluation import knn_accuracy, knn_predict
from isd_nb.kernels.nearest_neighbours import nearest
from isd_nb.sources.index import index_folder
from isd_nb.sources.layout import read_folder, read_indexed
from isd_nb.explore.neighbours import name_of
from isd_nb.sources.torchvision_sets import read_torchvision, split_options

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)


def encoded(kind: str, image: Image.Image, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112], block[0x0131], block[0x011A] = orientation, "camera", 72.0
    return block


def whole_files() -> dict[str, bytes]:
    "One file of each kind that is read."
    image, grey16 = Image.fromarray(PIXELS), Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    few = image.quantize(8)
    files = {kind: encoded(kind, image) for kind in ("BMP", "PPM", "GIF", "WEBP")}
    files |= {f"{kind}, EXIF": encoded(kind, image, exif=exif(6)) for kind in ("JPEG", "PNG", "WEBP", "TIFF")}
    files |= {"CMYK": encoded("JPEG", image.convert("CMYK")), "progressive": encoded("JPEG", image, progressive=True)}
    files |= {"palette": encoded("PNG", few, transparency=1), "16 bits": encoded("PNG", grey16),
              "frames": encoded("GIF", few, save_all=True, append_images=[few.rotate(90)])}
    return files | {f"TIFF {c}": encoded("TIFF", image, compression=c) for c in ("tiff_lzw", "packbits", "jpeg")}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    "Cut, or with bytes overwritten, left out or inserted; half of the time near the beginning, where the structure is."
    near = min(len(data), int(rng.choice([60, 200, 1_000_000])))
    place, new = int(rng.integers(near)), rng.integers(0, 256, int(rng.integers(1, 9)), dtype=np.uint8).tobytes()
    return (data[:place], data[:place] + new + data[place + len(new):], data[:place] + new + data[place:],
            data[:place] + data[place + len(new):])[rng.integers(4)]


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_oserror_or_are_read(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    rng, outcomes, files = np.random.default_rng(0), [], whole_files()
    tries = [(kind, damaged(data, rng)) for kind, data in [*files.items()] * 60]
    block = files["JPEG, EXIF"]
    tries += [("EXIF", block[:i] + bytes([value]) + block[i + 1:]) for i in range(20, 120) for value in (0, 1, 64, 255)]
    for kind, data in tries:
        (tmp_path / "file").write_bytes(data)
        try:
            outcomes.append(open_image(tmp_path / "file").mode in ("L", "RGB"))
        except OSError:
            outcomes.append(None)
        except Exception as error:
            raise AssertionError(f"a damaged file ({kind}) raises {type(error).__name__}") from error
    assert False not in outcomes and outcomes.count(None) > 300 and outcomes.count(True) > 100
    capfd.readouterr()  # what libtiff says


@pytest.mark.parametrize("failure", [struct.error, TypeError, IndexError, KeyError, ZeroDivisionError, MemoryError])
def test_whatever_a_decoder_raises_is_an_oserror_with_its_name(tmp_path: Path, monkeypatch, failure: type) -> None:
    def trip(*_) -> None:
        raise failure("half a table")

    (tmp_path / "a.png").write_bytes(encoded("PNG", Image.fromarray(PIXELS)))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", trip)
    with pytest.raises(OSError, match=f"(?s){failure.__name__.removeprefix('struct.')}.*half a table"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_that_of_pillow(tmp_path: Path, kind: str, orientation: int) -> None:
    (tmp_path / "file").write_bytes(encoded(kind, Image.fromarray(PIXELS), exif=exif(orientation)))
    with Image.open(tmp_path / "file") as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "file")), expected)


def bad_exif(block: bytes, what: str) -> bytes:
    "An EXIF block with its orientation whole and text where numbers belong, or one that ends before its table."
    entry = struct.pack(">HHI", 0x0131, 2, 7)  # the tag "software": text of 7 bytes
    assert block.count(entry) == 1
    return block.replace(entry, struct.pack(">HHI", 0x0140, 2, 7)) if what == "another tag" else block[:12]


@pytest.mark.parametrize("what, turned", [("another tag", True), ("the table", False)])
def test_a_damaged_exif_block_costs_no_image(tmp_path: Path, what: str, turned: bool) -> None:
    (tmp_path / "whole.jpg").write_bytes(encoded("JPEG", Image.fromarray(PIXELS)))
    (tmp_path / "bad.jpg").write_bytes(encoded("JPEG", Image.fromarray(PIXELS), exif=bad_exif(exif(6).tobytes(), what)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = open_image(tmp_path / "bad.jpg")
    plain = open_image(tmp_path / "whole.jpg")
    expected = plain.transpose(Image.Transpose.ROTATE_270) if turned else plain
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    train, _ = read_folder(tmp_path, 8)
    assert len(train) == 2


@pytest.mark.parametrize("read", [read_folder, read_indexed])
def test_unreadable_files_are_named_with_their_folder(tmp_path: Path, monkeypatch, read) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(PIXELS).save(tmp_path / "set" / name / f"{i}.png")
    (tmp_path / "set" / "a" / "0.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"cannot be read: a/0\.png \("):
        read(Path("set"), 8)
    for i in range(5):
        (tmp_path / "set" / "b" / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a/0\.png .*; b/0\.png .*More than 5%"):
        read(Path("set"), 8)


def with_images(folder: Path, *names: str) -> Path:
    "A folder with these images in it."
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS).save(folder / name)
    return folder


@pytest.fixture(params=["walking", "index"])
def read(request: pytest.FixtureRequest, tmp_path: Path):
    "Both readers of a folder."
    return read_folder if request.param == "walking" else functools.partial(read_indexed, cache=tmp_path / "cache")


CLASSES = ("train/a/0.png", "train/a/1.png", "train/b/0.png", "train/b/1.png", "train/b/2.png")
TEST_FOLDERS = {
    "flat test": (["test/0.png", "val/a/0.png", "val/b/0.png"], "val", [0, 1]),
    "test in a subfolder": (["test/images/0.png", "val/b/0.png"], "val", [1]),
    "only flat ones": (["test/0.png", "val/0.png", "val/1.png"], "test", None),
    "flat beside foreign": (["test/images/0.png", "val/0.png"], "val", None),
    "all labelled": (["test/b/0.png", "val/a/0.png"], "test", [1]),
    "sorted by us": (["labelled_val/b/0.png", "test/a/0.png", "val/a/0.png"], "labelled_val", [1])}


@pytest.mark.parametrize("case", TEST_FOLDERS)
def test_the_test_set_is_the_first_folder_with_labels(tmp_path: Path, read, case: str) -> None:
    files, chosen, labels = TEST_FOLDERS[case]
    train, test = read(with_images(tmp_path / "set", *CLASSES, *files), 8)
    assert train.labels.tolist() == [0, 0, 1, 1, 1]
    assert {p.relative_to(tmp_path / "set").parts[0] for p in test.paths} == {chosen}
    assert (None if test.labels is None else test.labels.tolist()) == labels


@pytest.mark.parametrize("files, named", [(["test/a/0.png", "test/zebra/0.png", "val/a/0.png"], "zebra"),
                                          (["test/images/0.png"], "images")])
def test_a_class_that_training_lacks_is_named(tmp_path: Path, read, files: list[str], named: str) -> None:
    with pytest.raises(InputError, match=f"test has classes that the training images lack: {named}$"):
        read(with_images(tmp_path / "set", *CLASSES, *files), 8)


def test_without_classes_the_first_folder_is_the_test_set(tmp_path: Path, read) -> None:
    train, test = read(with_images(tmp_path / "set", "train/0.png", "train/1.png", "test/0.png", "val/a/0.png"), 8)
    assert train.labels is None and [p.parent.name for p in test.paths] == ["test"]


def test_an_index_that_cannot_be_kept_costs_a_warning(tmp_path: Path, monkeypatch) -> None:
    with_images(tmp_path / "set", "a/0.png", "b/0.png", "b/1.png")
    (tmp_path / "file").touch()
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"could not be kept in .*file.* will be listed again next time$"):
            assert len(index_folder(tmp_path / "set", tmp_path / "file" / "cache").files) == 3

    def full(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("isd_nb.sources.index.np.savez", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert len(read_indexed(tmp_path / "set", 8, tmp_path / "cache")[0]) == 2
    assert list((tmp_path / "cache").iterdir()) == [], "nothing half written stays"


def test_both_readers_see_the_same_files(tmp_path: Path) -> None:
    "Hidden files, links that lead nowhere, to themselves, in a circle, to a file and to a folder."
    place = with_images(tmp_path / "set", "a/0.png", "a/deep/1.png", "b/2.png", "hidden/._x.png", ".c/3.png", "4.png")
    with_images(tmp_path / "elsewhere", "5.png")
    (place / "notes.png").mkdir()  # a folder with the name of an image
    for link, target in {"a/gone.png": "nowhere", "a/self.png": "self.png", "a/up": "..", "b/deep": "../a/deep",
                         "b/6.png": "2.png", "elsewhere": "../elsewhere", "only_up/up": ".."}.items():
        (place / link).parent.mkdir(exist_ok=True)
        (place / link).symlink_to(target)
    found, index = read_folder(place, 8, memory=0), index_folder(place, tmp_path / "cache")
    names = ["a/0.png", "a/deep/1.png", "b/2.png", "b/6.png", "b/deep/1.png", "elsewhere/5.png"]
    assert [str(p.relative_to(place)) for p in image_files(place)] == ["4.png", *names]
    assert [str(p.relative_to(place)) for p in index.files] == names
    assert index.classes == found[0].classes == ("a", "b", "elsewhere")
    assert [p.name for p in class_folders(place)] == list(index.classes)
    assert index.labels.tolist() == [0, 0, 1, 1, 1, 2]
    indexed = read_indexed(place, 8, tmp_path / "cache", memory=0)
    for ours, theirs in zip(indexed, found):
        assert (list(ours.paths), ours.labels.tolist()) == (list(theirs.paths), theirs.labels.tolist())


def test_an_index_is_not_believed_where_a_link_led_nowhere(tmp_path: Path) -> None:
    place = with_images(tmp_path / "set", "a/0.png")
    (place / "b").symlink_to(tmp_path / "disk")
    assert index_folder(place, tmp_path / "cache").classes == ("a",)
    with_images(tmp_path / "disk", "0.png")  # the disk is mounted; nothing in `set` has changed
    assert index_folder(place, tmp_path / "cache").classes == ("a", "b")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch, read) -> None:
    place, scandir = with_images(tmp_path / "set", "a/0.png", "a/1.png", "lost+found/0.png"), os.scandir

    def guarded(folder: Path) -> object:
        if Path(folder).name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr("isd_nb.sources.folders.os.scandir", guarded)
    for _ in range(2):  # also by who has an index
        with pytest.warns(UserWarning, match=r"lost\+found cannot be listed \(Permission denied\)"):
            train, test = read(place, 8)
        assert (train.classes, len(train), len(test)) == (("a",), 1, 1)


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_set_ends(tmp_path: Path, on_disk: bool) -> None:
    images, _ = read_folder(with_images(tmp_path, "0.png", "1.png", "2.png"), 8, 0 if on_disk else 1 << 30)
    assert (images.images is None) == on_disk
    assert [image.shape for image in images] == [(3, 8, 8)] * 3
    assert torch.equal(images[-3], images[0])
    for index in (3, -4):
        with pytest.raises(IndexError):
            images[index]
        with pytest.raises(IndexError):
            images.get([0, index])


def test_classes_without_names_are_numbers() -> None:
    pixels = torch.zeros(5, 1, 2, 3, dtype=torch.uint8)
    images = ImageSet(pixels, torch.tensor([0, 3, 1, 0, 11]))
    assert images.classes == tuple(str(c) for c in range(12))
    assert [name_of(images, i) for i in range(5)] == ["0", "3", "1", "0", "11"]
    assert images.subset([0, 2]).classes == images.classes
    assert ImageSet(pixels, torch.tensor([0, 1, 1, 0, 0]), ("x", "y")).classes == ("x", "y")
    for count, labels in ((5, None), (0, torch.zeros(0, dtype=torch.long))):
        assert ImageSet(pixels[:count], labels).classes == ()


def test_no_class_is_held_out_as_a_whole() -> None:
    labels = torch.tensor([4, 7, 4, 7, 4, 7, 4, 9, 4, 5, 5])
    pixels = torch.arange(11, dtype=torch.uint8).view(11, 1, 1, 1).expand(11, 1, 2, 3)
    for share, tested in ((0.2, {4: 1, 7: 1, 5: 1}), (0.9, {4: 4, 7: 2, 5: 1}), (1, {4: 4, 7: 2, 5: 1})):
        train, test = held_out(ImageSet(pixels, labels), share, seed=3)
        assert {c: int((test.labels == c).sum()) for c in test.labels.tolist()} == tested
        assert set(train.labels.tolist()) == {4, 5, 7, 9}
        assert sorted([*train.images[:, 0, 0, 0].tolist(), *test.images[:, 0, 0, 0].tolist()]) == list(range(11))
    many = ImageSet(pixels, labels % 2)
    assert torch.equal(held_out(many, 0.4)[1].images, many.subset(stratified_fraction(many.labels, 0.4)).images)


def test_of_classes_of_one_image_none_is_held_out(tmp_path: Path, read) -> None:
    train, test = read(with_images(tmp_path / "set", "a/0.png", "b/0.png", "c/0.png"), 8)
    assert (train.labels.tolist(), test) == ([0, 1, 2], None)


NUMBERS = {  # 32 bits: as stored, and as bytes
    "I to 255": (np.int32, [[0, 1, 200], [3, 255, 77]], [[0, 1, 200], [3, 255, 77]]),
    "I to 1": (np.int32, [[0, 1, 1], [0, 0, 1]], [[0, 1, 1], [0, 0, 1]]),
    "I to 65535": (np.int32, [[0, 257, 65535], [128, 129, 514]], [[0, 1, 255], [0, 1, 2]]),
    "16 bits": (np.uint16, [[0, 200, 255], [0, 0, 129]], [[0, 1, 1], [0, 0, 1]]),
    "F to 255": (np.float32, [[0, 1, 200.4], [3, 255, 77]], [[0, 1, 200], [3, 255, 77]]),
    "F to 1": (np.float32, [[0, 1, 0.5], [0.2, 0.001, 0.75]], [[0, 255, 128], [51, 0, 191]]),
    "F below 1": (np.float32, [[0, 0.2, 0.4], [0.6, 0.8, 0.1]], [[0, 51, 102], [153, 204, 26]]),
    "F mask": (np.float32, [[0, 1, 1], [0, 0, 1]], [[0, 255, 255], [0, 0, 255]]),
    "F black": (np.float32, [[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]),
    "F to 65535": (np.float32, [[0, 257, 65535], [128, 129, 514]], [[0, 1, 255], [0, 1, 2]])}


@pytest.mark.parametrize("case", NUMBERS)
def test_images_of_many_bits(tmp_path: Path, case: str) -> None:
    kind, stored, expected = NUMBERS[case]
    Image.fromarray(np.array(stored, kind)).save(tmp_path / "a.tif")
    found = open_image(tmp_path / "a.tif")
    assert (found.mode, np.asarray(found).tolist()) == ("L", expected)


@pytest.mark.parametrize("value, message", [(np.nan, "2 of 6 pixel values are not finite"), (np.inf, "2 of 6"),
                                            (-1, "from -1 to 0.5 are neither"), (70000, "to 70000 are neither")])
def test_numbers_that_are_no_brightness(value: float, message: str) -> None:
    with pytest.raises(OSError, match=message):
        to_eight_bits(Image.fromarray(np.array([[0.5, value, 0], [value, 0, 0]], np.float32)))


TRAIN = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS")
SPLIT = ("Country211", "DTD", "FER2013", "Flowers102", "Food101", "GTSRB", "PCAM", "RenderedSST2", "STL10", "SVHN",
         "StanfordCars")
OTHER = {"CLEVRClassification": ("train", "val"), "FGVCAircraft": ("trainval", "test"), "ImageNet": ("train", "val"),
         "Imagenette": ("train", "val"), "OxfordIIITPet": ("trainval", "test"), "Places365": ("train-standard", "val")}
WHOLE = ("Caltech101", "Caltech256", "EuroSAT", "Omniglot", "SEMEION", "SUN397")
ASKED = {name: ({"train": True}, {"train": False}) for name in TRAIN}
ASKED |= {name: ({"split": "train"}, {"split": "test"}) for name in SPLIT}
ASKED |= {name: ({"split": a}, {"split": b}) for name, (a, b) in OTHER.items()}
ASKED |= {"EMNIST": ({"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
          "INaturalist": ({"version": "2021_train"}, {"version": "2021_valid"})}
NOT_FETCHED = {"ImageNet", "FER2013"}  # torchvision has no download of these


@pytest.mark.parametrize("name", [*ASKED, *WHOLE])
def test_how_torchvision_sets_are_asked(name: str) -> None:
    factory = getattr(datasets, name)
    fixed = {"root": "here"} | ({} if name in NOT_FETCHED else {"download": True})
    choices = ASKED.get(name, ({}, None))
    for train, choice in zip((True, False), choices):
        assert split_options(factory, name, "here", train) == (None if choice is None else fixed | choice)


@pytest.mark.parametrize("name", [*ASKED, *WHOLE])
def test_their_constructors_accept_what_they_are_asked(name: str, tmp_path: Path, monkeypatch) -> None:
    "In an empty folder, without download: the files are what is missing, and not an argument."
    monkeypatch.setitem(sys.modules, "h5py", ModuleType("h5py"))  # PCAM asks for it before anything else
    factory = getattr(datasets, name)
    for train in (True, False):
        options = split_options(factory, name, tmp_path, train)
        if options is None:
            assert not train and name in WHOLE
            continue
        quiet = options | ({"download": False} if "download" in options else {})
        with pytest.raises((RuntimeError, OSError)):  # "Dataset not found"
            factory(**quiet)
        for argument in {"split", "version"} & set(options):
            with pytest.raises(ValueError, match="Valid values are"):
                factory(**quiet | {argument: "no such split"})


@pytest.fixture
def opened(monkeypatch) -> list[tuple[str, dict]]:
    "Every listed constructor keeps its signature but only notes how it was called; its items are made up."
    calls: list[tuple[str, dict]] = []

    def replace(name: str) -> None:
        factory = getattr(datasets, name)
        original = factory.__init__

        @functools.wraps(original)
        def note(self, *args, **options) -> None:
            assert not args
            calls.append((name, options))

        monkeypatch.setattr(factory, "__init__", note)
        monkeypatch.setattr(factory, "__len__", lambda self: 10)
        monkeypatch.setattr(factory, "__getitem__", lambda self, i: (Image.fromarray(PIXELS), np.int64(i % 2)))
        monkeypatch.setattr(factory, "classes", [("tench", "Tinca tinca"), "b"], raising=False)

    for name in (*ASKED, *WHOLE):
        replace(name)
    return calls


@pytest.mark.parametrize("name", [*ASKED, *WHOLE])
def test_they_are_read(name: str, tmp_path: Path, opened: list) -> None:
    train, test = read_torchvision(name.lower(), 8, tmp_path)
    choices = [{k: v for k, v in options.items() if k not in ("root", "download")} for _, options in opened]
    assert choices == list(ASKED.get(name, ({},))) and {called for called, _ in opened} == {name}
    assert (len(train), len(test)) == ((10, 10) if name in ASKED else (8, 2))
    assert (train.shape, train.classes) == ((3, 8, 8), ("tench, Tinca tinca", "b"))
    assert test.labels.unique().tolist() == [0, 1]


def failing(*errors: Exception | None):
    "A set whose construction fails like this, once each; `None` succeeds. It notes whether it was to download."
    queue, downloads = list(errors), []

    class Set:
        def __init__(self, root: Path, split: str = "train", download: bool = False) -> None:
            downloads.append(download)
            if error := queue.pop(0):
                raise error

    Set.downloads = downloads
    return Set


def refusal_of(monkeypatch, tmp_path: Path, factory) -> str:
    monkeypatch.setattr(datasets, "Food101", factory)
    with pytest.raises(InputError) as caught:
        read_torchvision("Food101", 8, tmp_path)
    return str(caught.value)


def test_what_is_blamed(monkeypatch, tmp_path: Path) -> None:
    said = functools.partial(refusal_of, monkeypatch, tmp_path)
    wrong = ValueError("Unknown value 'train' for argument split.")
    message = said(failing(wrong, wrong))
    assert "does not open with split='train' (Unknown value" in message and "download" not in message
    message = said(failing(RuntimeError("Error downloading a.gz:\nmore"), RuntimeError("Dataset not found")))
    assert f"is not in {tmp_path.resolve()} and could not be downloaded (Error downloading a.gz:)" in message
    message = said(failing(urllib.error.URLError("no network")))  # and no second try: what is there may be half of it
    assert "could not be downloaded (<urlopen error no network>)" in message
    lacking = RuntimeError("h5py is not found")
    lacking.__context__ = ModuleNotFoundError("No module named 'h5py'")
    message = said(failing(lacking, lacking))
    assert "needs a package that is not installed: h5py is not found" in message and "download" not in message


def test_a_set_that_lies_there_opens_although_it_cannot_be_downloaded(monkeypatch, tmp_path: Path) -> None:
    broken = ValueError("The original URL is broken so the StanfordCars dataset cannot be downloaded anymore.")
    factory = failing(broken, None, broken, None)
    factory.__len__, factory.__getitem__ = lambda self: 4, lambda self, i: (Image.fromarray(PIXELS), i)
    monkeypatch.setattr(datasets, "StanfordCars", factory)
    train, test = read_torchvision("StanfordCars", 8, tmp_path)
    assert (len(train), len(test), factory.downloads) == (4, 4, [True, False, True, False])
    message = refusal_of(monkeypatch, tmp_path, failing(broken, RuntimeError("Dataset not found.")))
    assert "is not in" in message and "Dataset not found" in message


@pytest.mark.parametrize("name, lacking", [("Kinetics", "frames_per_clip"), ("CocoCaptions", "annFile"),
                                           ("PhotoTour", "name")])
def test_sets_that_need_more_than_a_name_say_so(name: str, lacking: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{name} does not open .*{lacking}.*arrange its images as folders") as caught:
        read_torchvision(name, 8, tmp_path)
    assert "download" not in str(caught.value)


PICTURE = Image.fromarray(PIXELS)


@pytest.mark.parametrize("item", [torch.zeros(3, 4, 4), (PICTURE, None), (PICTURE, [1, 2]), (PICTURE, 1, 2)],
                         ids=["tensor", "no label", "boxes", "triple"])
def test_what_is_no_classification_set(monkeypatch, tmp_path: Path, item) -> None:
    factory = failing(None, None)
    factory.__len__, factory.__getitem__ = lambda self: 4, lambda self, i: item
    assert "no classification set" in refusal_of(monkeypatch, tmp_path, factory)


def test_spread() -> None:
    images = ImageSet(torch.zeros(11, 1, 2, 3, dtype=torch.uint8), torch.arange(11))
    assert subsample_evenly(images, 3).labels.tolist() == [0, 5, 10]
    assert subsample_evenly(images, 11) is images and subsample_evenly(images, 99) is images
    lazy = ImageSet(None, None, (), tuple(Path(str(i)) for i in range(11)), (3, 2, 2))
    assert [p.name for p in subsample_evenly(lazy, 2).paths] == ["0", "10"]


CONFIG = BackboneConfig("tiny", channels=3, width=4)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(build_backbone(CONFIG), [0.4] * 3, [0.3] * 3).eval()


def test_a_tensor_of_no_encoder_is_an_error(tmp_path: Path, encoder: Encoder) -> None:
    file = tmp_path / "encoder.safetensors"
    save_encoder(file, {"teacher": encoder, "student": encoder}, CONFIG, 16)
    with safe_open(file, "pt") as saved:
        header, tensors = saved.metadata(), {k: saved.get_tensor(k) for k in saved.keys()}  # noqa: SIM118
    for stray in ("other.foo", "teacherbackbone", "students.mean", "mean"):
        save_file(tensors | {stray: torch.ones(2)}, file, metadata=header)
        for which in ("teacher", "student"):
            with pytest.raises(ValueError, match=f"holds tensors of no encoder: {stray}$"):
                load_encoder(tmp_path, which)
    save_file(tensors, file, metadata=header)
    load_encoder(tmp_path, "student")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_encoders_compute_in_their_own_precision(tmp_path: Path, encoder: Encoder, dtype: torch.dtype) -> None:
    save_encoder(tmp_path / "encoder.safetensors", {"teacher": encoder}, CONFIG, 16)
    images = torch.rand(2, 3, 16, 12).to(dtype)
    expected = encoder(images.float())
    for net in (encoder, load_encoder(tmp_path)):
        torch.testing.assert_close(net(images), expected)
    assert encoder.double()(images).dtype == torch.float64


def test_of_equal_neighbours_the_first_rows_are_taken() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = torch.randint(0, 2, (3000, 4), generator=generator) * 2.0 - 1  # 16 different rows; every cosine is exact
    order = (bank[:7] @ bank.T).sort(dim=1, descending=True, stable=True).indices
    for k in (1, 3, 20, 190, 3000):
        for block in ((1024, 65536), (3, 500), (5, 64)):
            assert torch.equal(nearest(bank, bank[:7], k, block)[1], order[:, :k])


def test_equal_neighbours_in_a_collapsed_bank() -> None:
    bank, query = torch.ones(500, 4), torch.ones(70, 4)
    assert torch.equal(nearest(bank, query, 20, (32, 130))[1], torch.arange(20).expand(70, 20))


def test_an_image_twice_with_two_labels() -> None:
    bank = torch.tensor([[0.0, 1], [1, 0], [1, 0], [1, 0]])
    query = torch.tensor([[2.0, 0]])
    for labels in ([3, 1, 2, 2], [3, 2, 1, 1]):
        assert knn_predict(bank, torch.tensor(labels), query, k=1).item() == labels[1]
    assert knn_accuracy(bank, torch.tensor([3, 1, 2, 2]), query, torch.tensor([2]), k=3) == 1.0
