"""An image set in code of a user's own: data sets of PyTorch and Hugging Face, folders, rows, and how it is printed."""
import inspect
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split

import isd_nb
from isd_nb.data import ImageSet
from isd_nb.embedding import embed
from isd_nb.engine.finish import Finished
from isd_nb.engine.training import train as train_method
from isd_nb.errors import InputError, refusal
from isd_nb.evaluation import few_label_accuracy
from isd_nb.queue import AnchorQueue
from isd_nb.sources.datasets import from_dataset

PIXELS = torch.randint(256, (12, 3, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
IMAGES = ImageSet(PIXELS, torch.arange(12) % 3, ("a", "b", "c"))


@pytest.fixture
def files(tmp_path: Path) -> ImageSet:
    "Six images that stay on disk."
    for i, pixels in enumerate(PIXELS[:6]):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    return ImageSet(None, torch.arange(6) % 3, ("a", "b", "c"), paths, (3, 6, 6))


# ---- through the tools of PyTorch and back

def same(found: ImageSet, rows: list[int]) -> None:
    assert found.labels is not None and IMAGES.labels is not None
    assert found.labels.tolist() == IMAGES.labels[rows].tolist() and found.classes == IMAGES.classes
    assert torch.equal(found.get(range(len(found))), PIXELS[rows])


def test_labels_and_names_come_back_from_pytorchs_tools() -> None:
    part, rest = random_split(IMAGES, [8, 4], torch.Generator().manual_seed(0))
    same(from_dataset(part), list(part.indices))
    same(from_dataset(IMAGES), list(range(12)))
    same(ImageSet.from_dataset(ConcatDataset([part, rest])), [*part.indices, *rest.indices])
    same(from_dataset(Subset(ConcatDataset([IMAGES, IMAGES]), [13, 2])), [1, 2])
    same(from_dataset(Subset(IMAGES.pairs(), np.array([5, 3]))), [5, 3])
    same(from_dataset(IMAGES + IMAGES), [*range(12), *range(12)])
    same(from_dataset(ConcatDataset([Subset(IMAGES, []), part]), size=6), list(part.indices))
    assert "is empty" in refusal(from_dataset, Subset(IMAGES, []))


def test_a_size_and_names_are_heeded() -> None:
    found = from_dataset(Subset(IMAGES, [4, 5]), size=3, classes=("x", "y", "z"))
    assert found.shape == (3, 3, 3) and found.classes == ("x", "y", "z") and found.labels.tolist() == [1, 2]
    assert torch.equal(found.images, from_dataset(TensorDataset(PIXELS[4:6], torch.zeros(2).long()), size=3).images)


def test_files_stay_files_unless_they_are_joined_with_what_is_in_memory(files: ImageSet) -> None:
    part = from_dataset(Subset(files, [3, 1]))
    assert part.images is None and [p.name for p in part.paths] == ["3.png", "1.png"]
    same(part, [3, 1])
    both = from_dataset(ConcatDataset([files, part]))
    assert both.images is None and len(both.paths) == 8
    mixed = from_dataset(ConcatDataset([files, IMAGES]))
    assert mixed.images is not None and not mixed.paths
    same(mixed, [*range(6), *range(12)])
    assert from_dataset(files, size=4)[0].shape == (3, 4, 4)


@pytest.mark.parametrize("other, words", [
    (ImageSet(PIXELS, torch.arange(12) % 2, ("a", "x")), "have other classes, a, b, c and a, x"),
    (ImageSet(PIXELS, None, ("a", "b", "c")), "some have labels"),
    (ImageSet(PIXELS[:, :, :4], torch.arange(12) % 3, ("a", "b", "c")), r"\(3, 6, 6\) and \(3, 4, 6\)")])
def test_sets_that_do_not_fit_are_not_joined(other: ImageSet, words: str) -> None:
    with pytest.raises(InputError, match=words):
        from_dataset(ConcatDataset([IMAGES, other]))


def test_sets_of_other_sides_and_of_fewer_numbered_classes_are_joined() -> None:
    wide = ImageSet(torch.zeros(2, 3, 6, 8).byte(), [0, 3])
    found = from_dataset(ConcatDataset([ImageSet(PIXELS, torch.arange(12) % 3), wide]), size=6)
    assert found.shape == (3, 6, 6) and found.classes == ("0", "1", "2", "3") and found.labels.tolist()[-2:] == [0, 3]


def test_a_subset_of_ones_own_is_read_item_by_item() -> None:
    class Brighter(Subset):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index) // 2, 1

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [self[i] for i in indices]

    found = from_dataset(Brighter(IMAGES, [0, 1]))
    assert found.labels.tolist() == [1, 1] and torch.equal(found.images, PIXELS[:2] // 2)


def test_pairs_are_for_loops_of_ones_own() -> None:
    pairs = pickle.loads(pickle.dumps(IMAGES.pairs()))
    assert isinstance(pairs, Dataset) and len(pairs) == 12 and pairs.classes == ("a", "b", "c")
    pixels, labels = next(iter(DataLoader(pairs, 4)))
    assert torch.equal(pixels, PIXELS[:4]) and labels.tolist() == [0, 1, 2, 0]
    assert torch.equal(next(iter(DataLoader(IMAGES, 4))), PIXELS[:4]) and len(list(IMAGES)) == 12
    assert "have no labels" in refusal(ImageSet(PIXELS).pairs)


# ---- data sets of Hugging Face

class Rows(list):
    "A list of rows with features, as a data set of Hugging Face has them."
    features: ClassVar = {"img": SimpleNamespace(), "label": SimpleNamespace(names=["cat", "dog"])}


def picture(i: int) -> Image.Image:
    return Image.new("L", (4, 4), i)


def test_rows_of_hugging_face_are_read() -> None:
    found = from_dataset(Rows({"img": picture(i), "label": i % 2} for i in range(3)))
    assert found.labels.tolist() == [0, 1, 0] and found.classes == ("cat", "dog") and found.shape == (1, 4, 4)
    assert from_dataset([{"image": picture(i), "labels": 2 - i} for i in range(3)]).labels.tolist() == [2, 1, 0]
    assert from_dataset([{"image": picture(1), "id": 7}] * 2).labels is None


@pytest.mark.parametrize("dataset, words", [
    ([{"picture": picture(0), "id": 1}], "has the keys picture, id: its image must be under image or img"),
    ([{"img": picture(0), "fine_label": 1, "coarse_label": 0}], "has the keys img, fine_label, coarse_label: "),
    ({"train": [picture(0)], "test": []}, r"has the parts train, test: give one of them, as dataset\['train'\]")])
def test_other_keys_are_listed(dataset: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        from_dataset(dataset)


# ---- how it is printed, compared and indexed

def test_what_is_printed_is_one_short_line(files: ImageSet) -> None:
    assert repr(IMAGES) == "ImageSet(12 images of shape (3, 6, 6), labels of 3 classes, in memory (cpu))"
    assert repr(files) == "ImageSet(6 images of shape (3, 6, 6), labels of 3 classes, read from files)"
    finished = Finished({"teacher": None}, {"teacher": torch.zeros(8, 4)}, {"teacher": torch.zeros(2, 4)},
                        {"steps": 3, "knn20_teacher": 0.96})
    assert repr(finished) == "Finished(teacher: features of 8 images to look up and 2 to test on; knn20_teacher 0.960)"
    assert repr(Finished({}, {}, {}, {})).endswith("0 images to look up and 0 to test on; no accuracy)")
    assert repr(AnchorQueue(64, 4)) == "AnchorQueue(size=64, dim=4)"


def test_image_sets_are_equal_where_they_are_the_same_object() -> None:
    assert IMAGES == IMAGES and ImageSet(PIXELS) != IMAGES and len({IMAGES, IMAGES}) == 1


@pytest.mark.parametrize("rows", [slice(2, 5), slice(None, None, -1), slice(4, 4), [3, -1], np.array([1, 0]),
                                  torch.arange(12) % 2 == 0, range(3)])
def test_several_rows_are_several_images(rows: Any, files: ImageSet) -> None:
    numbers = torch.arange(12).numpy()[rows].tolist()
    assert torch.equal(IMAGES[rows], PIXELS[numbers])
    if isinstance(rows, slice):
        assert torch.equal(files[rows], PIXELS[list(range(6)[rows])])


def test_one_row_is_one_image_and_no_part_of_a_set() -> None:
    assert all(torch.equal(IMAGES[i], PIXELS[3]) for i in (3, np.int64(3), torch.tensor(3), -9))
    for wrong in (3, np.int64(3), torch.tensor(3)):
        assert "rows must be several numbers, such as [3], or a mask, not the single 3" in refusal(IMAGES.subset, wrong)


# ---- folders, and what is given instead of images

@pytest.fixture
def fold(tmp_path: Path) -> Path:
    "Three images of each of two classes."
    for i, pixels in enumerate(PIXELS[:6]):
        (tmp_path / "fold" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "fold" / "ab"[i % 2] / f"{i}.png")
    return tmp_path / "fold"


def test_a_folder_becomes_one_set(fold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fold.parent)
    images = ImageSet.from_folder(fold, 6)
    assert images.classes == ("a", "b") and images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [p.name for p in images.paths] == ["0.png", "2.png", "4.png", "1.png", "3.png", "5.png"]
    assert torch.equal(images.images, PIXELS[[0, 2, 4, 1, 3, 5]]) and ImageSet.from_folder("fold", 4).shape == (3, 4, 4)
    assert {p.name for p in fold.parent.iterdir()} == {"fold"}, "no list of the folder is kept"
    (fold / "labels.csv").write_text("file,label\n" + "".join(f"{'ab'[i % 2]}/{i}.png,x{i % 3}\n" for i in range(6)))
    assert ImageSet.from_folder(fold, 6, labels=fold / "labels.csv").classes == ("x0", "x1", "x2")
    assert "size must be a whole number of pixels" in refusal(ImageSet.from_folder, fold, "6")


def test_of_a_folder_that_is_split_the_training_images_are_read(fold: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(fold / "a", fold.parent / "both" / part / "a")
        shutil.copytree(fold / "b", fold.parent / "both" / part / "b")
    (fold.parent / "both" / "test" / "a" / "0.png").unlink()
    assert len(ImageSet.from_folder(fold.parent / "both", 6)) == 6
    assert len(ImageSet.from_folder(fold.parent / "both" / "test", 6)) == 5


GIVEN = [("folder:fold", "ImageSet.from_folder('fold', size) reads a folder"),
         (Path("fold"), "ImageSet.from_folder('fold', size) reads a folder"),
         ("digits", "isd_nb.sources.door.load_images('digits', size)"),
         (TensorDataset(PIXELS), "ImageSet.from_dataset makes an image set of a data set of PyTorch"),
         (DataLoader(TensorDataset(PIXELS)), "ImageSet.from_dataset(loader.dataset)")]


@pytest.mark.parametrize("given, words", GIVEN, ids=lambda v: type(v).__name__)
def test_a_place_or_a_data_set_given_as_images_is_refused(given: Any, words: str) -> None:
    found = refusal(embed, torch.nn.Flatten(), given)
    assert words in found and "NumPy" not in found and "np." not in found and words in refusal(ImageSet, given)


def test_training_names_how_a_folder_or_a_data_set_is_given(fold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fold.parent)
    assert "give the text 'folder:fold'" in refusal(isd_nb.train, "digits", Path("fold"), "run")
    assert "it is a folder, which is named folder:fold" in refusal(isd_nb.train, "digits", "fold", "run")
    assert "did you mean 'digits'" in refusal(isd_nb.train, "digits", "digit", "run")
    for given, words in GIVEN[3:]:
        assert words in refusal(isd_nb.train, "digits", given, "run")
    assert not (fold.parent / "run").exists()


@pytest.mark.parametrize("labels", [["cat", "dog"] * 6, np.array(["cat", "dog"] * 6),
                                    np.array(["cat", "dog"] * 6, dtype=object)], ids=["list", "array", "objects"])
def test_texts_as_labels_are_refused_with_what_numbers_them(labels: Any) -> None:
    words = "labels must be numbers, not texts such as 'cat': number the classes, as np.unique(labels, return_inver"
    features = torch.randn(12, 3)
    assert words in refusal(ImageSet, PIXELS, labels)
    assert words in refusal(isd_nb.knn_accuracy, features, labels, features, labels, k=1)


# ---- what a first script takes from the top level

def test_a_script_needs_no_deeper_module_for_a_run() -> None:
    recipe = isd_nb.find_recipe("digits")
    assert isinstance(recipe, isd_nb.Recipe) and isinstance(isd_nb.STRONG, isd_nb.ViewRecipe)
    assert isd_nb.few_label_accuracy is few_label_accuracy


def test_an_editor_completes_the_settings_of_a_run() -> None:
    "Those of the function that trains, by the same names and with the same defaults."
    inner, own = (inspect.signature(function).parameters for function in (train_method, isd_nb.train))
    for name in ("workers", "threads", "tracker", "watch", "save_every"):
        assert own[name].default == inner[name].default and own[name].annotation == inner[name].annotation
    assert not [p for p in own.values() if p.kind is p.VAR_KEYWORD]


def test_the_settings_of_a_run_reach_its_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Reached(Exception):
        pass

    def stop(*given: Any, **settings: Any) -> None:
        raise Reached(inspect.signature(train_method).bind(*given, **settings).arguments)

    monkeypatch.setattr("isd_nb.engine.whole.train_method", stop)
    how = dict(workers=2, threads=1, tracker="wandb", watch=print, save_every=5.0, show=True, resume=False)
    with pytest.raises(Reached) as found:
        isd_nb.train(isd_nb.find_recipe("digits"), IMAGES, tmp_path / "run", device="cpu", **how)
    assert {name: found.value.args[0][name] for name in how} == how
