"""Features by several processes: the same file as by one, also when another number of processes goes on."""

import os
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import call, full_disk
from launching import FORKED
from numpy.testing import assert_allclose
from PIL import Image

from isd_nb.cli.embed import isd_embed
from isd_nb.cli.explore import isd_explore
from isd_nb.encoders import BackboneConfig, Encoder, build_backbone, load_encoder, save_encoder
from isd_nb.engine import embedding
from isd_nb.engine.embedding import embed_to_file
from isd_nb.engine.evaluate_source import white_of
from isd_nb.engine.whole import train
from isd_nb.errors import InputError, refusal
from isd_nb.explore.atlas import check_atlas, write_atlas
from isd_nb.explore.given import features_and_images
from isd_nb.recipe import Recipe
from isd_nb.sources.door import load_images


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    "A network with random weights, in a file."
    torch.manual_seed(0)
    config = BackboneConfig("tiny", channels=3, width=2)
    teacher = Encoder(build_backbone(config), [0.5] * 3, [0.2] * 3)
    save_encoder(tmp_path / "tiny.safetensors", {"teacher": teacher}, config, 8)
    return tmp_path / "tiny.safetensors"


def test_a_file_that_cannot_be_read_has_no_features(encoder: Path, small: Path, tmp_path: Path) -> None:
    how = dict(batch_size=4, device="cpu", root=tmp_path)
    embed_to_file(encoder, f"folder:{small}", tmp_path / "whole.npy", **how)
    broken = sorted(path for path in small.rglob("*") if path.is_file())[2]
    name = broken.relative_to(small).as_posix()
    broken.write_bytes(broken.read_bytes()[:60])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        embed_to_file(encoder, f"folder:{small}", tmp_path / "some.npy", report=tmp_path / "report", **how)
    assert any("1 of" in str(note.message) and "rows are NaN" in str(note.message) for note in caught)
    whole, some = np.load(tmp_path / "whole.npy"), np.load(tmp_path / "some.npy")
    lost = np.flatnonzero(np.isnan(some).any(1))
    table = (tmp_path / "some.csv").read_text().splitlines()[1:]
    assert len(lost) == 1 and table[lost[0]].startswith(f"{name},") and np.isnan(some[lost]).all()
    kept = np.delete(np.arange(len(some)), lost)
    assert_allclose(some[kept], whole[kept], rtol=0, atol=1e-6)
    tables = {path.name: path.read_text() for path in (tmp_path / "report").iterdir()}
    assert sorted(tables) == ["near_duplicates.csv", "outliers.csv", "suspect_labels.csv"]
    assert not [file for file, text in tables.items() if name in text]


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    "Processes are forks of one that has imported torch."
    monkeypatch.setattr(embedding.multiprocessing, "get_context", lambda kind: FORKED)


@pytest.mark.usefixtures("forked")
def test_two_processes_go_on_with_what_one_began(encoder: Path, small: Path, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    how = dict(batch_size=4, device="cpu", root=tmp_path)
    data = f"folder:{small}"
    count, width = embed_to_file(encoder, data, tmp_path / "one.npy", **how)
    pieces = iter(range(100))

    def interrupted(*arguments: object) -> None:
        if next(pieces) == 4:
            raise KeyboardInterrupt
        keep_rows(*arguments)
    keep_rows = embedding.keep_rows
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(embedding, "keep_rows", interrupted)
        embed_to_file(encoder, data, tmp_path / "two.npy", **how)
    begun = tmp_path / ".two.npy.unfinished"
    assert embedding.rows_done(begun) == 4 * 4
    with (begun / "features.raw").open("r+b") as raw:  # what is done is not computed again
        raw.write(np.full(width, 7, "<f4").data)
    embed_to_file(encoder, data, tmp_path / "two.npy", processes=2, **how)
    one, two = np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy")
    assert one.shape == (count, width) and (two[0] == 7).all()
    assert_allclose(two[1:], one[1:], rtol=0, atol=1e-6)
    assert not begun.exists()


def test_features_of_files_that_have_changed_are_not_gone_on_with(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(first: int) -> None:
        for i in range(8):
            (tmp_path / "set" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), first + i).save(tmp_path / "set" / "ab"[i % 2] / f"{i}.png")

    def brightness(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(2).mean(2) * 255

    def one_piece(work: object, encode: object, sets: object, share: list, *rest: object) -> None:
        compute(work, encode, sets, share[:1], *rest)
        raise KeyboardInterrupt
    compute, how = embedding.compute, dict(size=8, batch_size=1, device="cpu", root=tmp_path)
    fill(10)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(embedding, "compute", one_piece)
        embed_to_file(brightness, f"folder:{tmp_path / 'set'}", tmp_path / "f.npy", **how)
    fill(110)  # the same names
    embed_to_file(brightness, f"folder:{tmp_path / 'set'}", tmp_path / "f.npy", **how)
    assert np.load(tmp_path / "f.npy").min() > 109


def levels(images: torch.Tensor) -> torch.Tensor:
    "An encoder: three means of each image."
    return images.flatten(2).mean(2)


DAMAGE = {  # what is done to the files of an earlier try, and what is printed of it
    "nothing is marked": (lambda left: (left / "done").write_bytes(b""), "its done has 0 bytes, not 100"),
    "half of the features": (lambda left: os.truncate(left / "features.raw", 600), "its features.raw has 600 bytes"),
    "nothing is known": (lambda left: (left / "about.json").write_text(""), "its about.json is damaged"),
    "no note": (lambda left: (left / "about.json").unlink(), "its about.json is not there"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_an_earlier_try_left_is_used_where_its_files_fit_each_other(damage: str, small: Path, tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    how = dict(size=8, batch_size=4, device="cpu", root=tmp_path, report=tmp_path / "report")
    out, left = tmp_path / "f.npy", tmp_path / ".f.npy.unfinished"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(embedding, "put_together", lambda *some: (_ for _ in ()).throw(KeyboardInterrupt))
        embed_to_file(levels, f"folder:{small}", out, **how)
    assert embedding.rows_done(left) == 100
    harm, words = DAMAGE[damage]
    harm(left)
    with pytest.warns(UserWarning, match=f"is not used, and all 100 rows are computed anew: {words}"):
        embed_to_file(levels, f"folder:{small}", out, **how)
    found = np.load(out)
    assert found.shape == (100, 3) and found.min() > 0.3 and not left.exists()


@pytest.mark.parametrize("place", ["train/a/000.png", "train/d/000.png", "test/b/009.png"])
def test_a_file_that_nothing_can_stand_in_for_has_no_features(place: str, small: Path, tmp_path: Path) -> None:
    (small / place).parent.mkdir(exist_ok=True)
    (small / place).write_bytes(b"no image")
    with pytest.warns(UserWarning, match=rf"{Path(place).name} cannot be read .*; its features are not a number"):
        count, _ = embed_to_file(levels, f"folder:{small}", tmp_path / "f.npy", size=8, batch_size=1, root=tmp_path)
    lost = np.flatnonzero(np.isnan(np.load(tmp_path / "f.npy")).any(1))
    table = (tmp_path / "f.csv").read_text().splitlines()[1:]
    assert len(table) == count and [table[row].partition(",")[0] for row in lost] == [place]


def refused_or_not(batch_size: int, damaged: int, small: Path, out: Path) -> str:
    "What a set of 100 files with so many damaged ones, in a row, leads to."
    for path in sorted(path for path in small.rglob("*") if path.is_file())[30:30 + damaged]:
        path.write_bytes(b"no image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            embed_to_file(levels, f"folder:{small}", out, size=8, batch_size=batch_size, device="cpu", root=out.parent)
        except InputError as error:
            return str(error)
    return "written"


@pytest.mark.parametrize("batch_size", [4, 200])
def test_damaged_files_are_too_many_at_any_batch_size(batch_size: int, small: Path, tmp_path: Path) -> None:
    assert refused_or_not(batch_size, 20, small, tmp_path / "f.npy") == "written"
    lost = np.isnan(np.load(tmp_path / "f.npy")).all(1)
    assert lost.sum() == 20
    for _ in range(2):  # a second try, which goes on with the rows of the first, is refused, too
        assert re.match(r"2\d of 100 files cannot be read", refused_or_not(batch_size, 25, small, tmp_path / "g.npy"))
        assert not (tmp_path / "g.npy").exists()


def test_one_pool_of_threads_decodes_all_pieces_of_a_split(small: Path, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    "So the first files of a piece are decoded while the network computes the piece before."
    own, in_batches = list[int](), embedding.in_batches
    noted = lambda images, rows: (own.append(len(rows)), in_batches(images, rows))[1]  # noqa: E731
    monkeypatch.setattr(embedding, "in_batches", noted)
    embed_to_file(levels, f"folder:{small}", tmp_path / "f.npy", size=8, batch_size=5, device="cpu", root=tmp_path)
    assert own == [16, 4]


def test_where_no_file_can_be_read_that_is_the_sentence(small: Path, tmp_path: Path) -> None:
    for path in (path for path in small.rglob("*") if path.is_file()):
        path.write_bytes(b"no image")
    assert "none of the 100 files can be read, the first of them" in refusal(
        embed_to_file, levels, f"folder:{small}", tmp_path / "f.npy", size=8, root=tmp_path)


@pytest.mark.parametrize("ending", [".csv", ".npy", ".parquet"])
def test_a_file_of_others_is_not_overwritten(ending: str, small: Path, tmp_path: Path) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    out, data = tmp_path / f"f{ending}", f"folder:{small}"
    for content in (b"id,price\n1,2\n", b"file,class,split,price\n", b"\x93NUMPY"):
        out.write_bytes(content)
        said = refusal(embed_to_file, levels, data, out, size=8, root=tmp_path)
        assert "isd_embed has not written it" in said and "choose another --out" in said
        assert out.read_bytes() == content and [*tmp_path.glob(".f*")] == []
    out.write_bytes(b"")  # as mktemp leaves it
    for _ in range(2):  # its own is written again
        assert embed_to_file(levels, data, out, size=8, root=tmp_path) == (100, 3)


def test_an_atlas_takes_the_place_of_an_atlas_only(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    embed_to_file(levels, f"folder:{small}", tmp_path / "f.parquet", size=8, root=tmp_path)
    assert "is no map of isd_embed" in refusal(check_atlas, tmp_path / "f.parquet")
    about = [(f"{i}.png", "a", "train") for i in range(20)]
    for _ in range(2):
        write_atlas(tmp_path / "atlas.parquet", torch.rand(20, 4), about)
    with full_disk() as fill, pytest.raises(OSError, match=r"atlas.parquet could not be written \("):
        fill()
        write_atlas(tmp_path / "atlas.parquet", torch.rand(20, 4), about)
    assert sorted(path.name for path in tmp_path.glob("*.p*")) == ["atlas.parquet", "f.parquet"]


@pytest.mark.parametrize("begins", ["features", "table"])
def test_a_full_disk_is_named_by_the_file_that_it_has_no_room_for(begins: str, small: Path, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    how = dict(size=8, batch_size=4, device="cpu", root=tmp_path)
    filled = {"features": "compute", "table": "put_together"}[begins]
    write = getattr(embedding, filled)
    place = {"features": ".f.npy.unfinished/features.raw", "table": "f.npy"}[begins]
    with full_disk() as fill, monkeypatch.context() as patch:
        patch.setattr(embedding, filled, lambda *some: fill() or write(*some))
        with pytest.raises(OSError, match=rf"{place} could not be written \(.*File too large.*\); what was"):
            embed_to_file(levels, f"folder:{small}", tmp_path / "f.npy", **how)
    assert embed_to_file(levels, f"folder:{small}", tmp_path / "f.npy", **how) == (100, 3)


@pytest.mark.usefixtures("forked")
def test_a_process_that_fails_is_named_in_one_sentence(encoder: Path, small: Path, tmp_path: Path) -> None:
    said = call(isd_embed, tmp_path, encoder, "--data", f"folder:{small}", "--out", "f.npy", "--processes", "0")
    assert said.returncode == 2 and "Invalid value for '--processes': Input should be" in said.stderr
    work = embedding.Work(tmp_path / "missing", f"folder:{small}", 8, tmp_path, tmp_path, 4)
    with pytest.raises(embedding.InputError, match="no encoder"):
        embedding.compute_together(work, [[(0, 4)]], torch.device("cpu"), lambda: None)


def test_a_process_that_fails_between_two_looks_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class EndsUnseen:
        "Alive at the first look; ends with exit code 3 before the second."
        pid, exitcode, sentinel, looks = None, 0, None, 0

        def start(self) -> None: ...

        def is_alive(self) -> bool:
            self.looks += 1
            self.exitcode = 3 * (self.looks > 1)
            return self.looks == 1

    nothing = SimpleNamespace(empty=lambda: True)
    context = SimpleNamespace(SimpleQueue=lambda: nothing, Process=lambda **about: EndsUnseen())
    monkeypatch.setattr(embedding.multiprocessing, "get_context", lambda kind: context)
    monkeypatch.setattr(embedding, "wait", lambda sentinels, timeout: None)
    work = embedding.Work(tmp_path / "encoder", "folder:x", 8, tmp_path, tmp_path, 4)
    with pytest.raises(embedding.InputError, match="exit code 3"):
        embedding.compute_together(work, [[(0, 4)]], torch.device("cpu"), lambda: None)


def test_tables_and_an_atlas_name_files_below_the_folder(encoder: Path, small: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    data = ["--data", f"folder:{small}"]
    wanted = ["--out", "f.npy", "--atlas", "atlas.parquet", "--thumbnails", "--report", "tables"]
    said = call(isd_embed, tmp_path, encoder, *data, *wanted)
    assert said.returncode == 0 and "--neighbors neighbors --image image" in said.stdout
    atlas = parquet.read_table(tmp_path / "atlas.parquet")
    assert {"x", "y", "neighbors", "image"} <= {*atlas.column_names} and len(atlas) == len(np.load(tmp_path / "f.npy"))
    found = call(isd_explore, tmp_path, "--encoder", encoder, *data, "--report", "shown")
    assert found.returncode == 0 and "outliers.csv" in found.stdout
    tables = [*(tmp_path / "tables").iterdir(), *(tmp_path / "shown").iterdir()]
    assert sorted({path.name for path in tables}) == ["near_duplicates.csv", "outliers.csv", "suspect_labels.csv"]
    written = [path.read_bytes() for path in (*tables, tmp_path / "atlas.parquet", tmp_path / "f.csv")]
    assert not any(str(tmp_path).encode() in content for content in written)
    alone = call(isd_explore, tmp_path, *data, "--report", "shown")
    sentence = "--report is about a run, or about weights with --encoder SOURCE --data SPEC"
    assert alone.returncode == 2 and sentence in alone.stderr


def test_a_runs_own_images_are_as_bright_and_as_large_as_in_its_training(tmp_path: Path) -> None:
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 4000, (12, 24, 30)).astype(np.uint16)):
        (tmp_path / "deep" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "deep" / "ab"[i % 2] / f"{i}.png")
    data = f"folder:{tmp_path / 'deep'}"
    recipe = Recipe("tiny", data=data, batch_size=8, queue_size=16, width=4, steps=1, white=1000.0, stored_size=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = train(recipe, None, tmp_path / "run", device="cpu", root=tmp_path)
    embed_to_file(tmp_path / "run", recipe.data, tmp_path / "f.npy", device="cpu", root=tmp_path)
    both = torch.cat([done.bank["teacher"], done.test["teacher"]]).numpy()
    assert_allclose(np.load(tmp_path / "f.npy"), both, rtol=0, atol=1e-5)
    _, features, images = features_and_images(tmp_path / "run", recipe.data, None, 100, tmp_path, "cpu")
    assert_allclose(features, done.test["teacher"], rtol=0, atol=1e-5)
    other = load_encoder(tmp_path / "run"), "folder:other"
    assert white_of(*other) is None and white_of(other[0], recipe.data) == 1000
    same = load_images(recipe.data, 16, tmp_path, white=1000.0, resized=20)[1]
    assert torch.equal(images.get(range(len(images))), same.get(range(len(same))))


def test_features_in_another_memory_order_are_written(tmp_path: Path) -> None:
    weights = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    embed_to_file(lambda images: (weights @ images.flatten(1).T).T, "digits", tmp_path / "table.npy", 8, device="cpu")
    found, (images, _) = np.load(tmp_path / "table.npy"), load_images("digits", 8)
    assert_allclose(found[:4], images.images[:4].flatten(1).float() / 255 @ weights.T, rtol=1e-4, atol=1e-5)
