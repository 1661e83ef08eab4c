"""Names and lists that others have made: folders of one date, homes, letters in two forms, odd blanks, spreadsheets."""
import csv
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from conftest import call
from launching import Forked
from PIL import Image

from isd_nb.cli.compare import isd_compare
from isd_nb.cli.evaluate import isd_eval
from isd_nb.cli.options import run_directory
from isd_nb.cli.pack import isd_pack, pack
from isd_nb.cli.train import isd_train
from isd_nb.data import FileList, ImageSet
from isd_nb.engine import training
from isd_nb.engine.embedding import embed_to_file
from isd_nb.engine.export import to_share
from isd_nb.engine.runs import read_metrics, write_metrics
from isd_nb.errors import encodable, printable, refusal
from isd_nb.kernels.archives import entries_in
from isd_nb.recipe import find_recipe, recipe_to_json
from isd_nb.sources import packed
from isd_nb.sources.digits import digits
from isd_nb.sources.door import load_sets
from isd_nb.sources.folders import in_threads
from isd_nb.sources.given import absolute, parse_folder, read_table
from isd_nb.sources.identity import fingerprint
from isd_nb.sources.packed import read_packed, write_packed
from isd_nb.studies.compare import Task, read_result


def pictures(place: Path, *names: str) -> Path:
    "Grey images below a folder."
    for i, name in enumerate(names):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 7 * i % 256, np.uint8)).save(place / name)
    return place


def dated(place: Path, day: int = 1577836800) -> None:
    "Give everything one date, as some programs do."
    for path in (place, *place.rglob("*")):
        os.utime(path, (day, day))


def test_what_comes_into_folders_of_one_date_is_seen(tmp_path: Path) -> None:
    place = pictures(tmp_path / "set", *(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    counts = []
    for more in (5, 25):
        pictures(place, *(f"{c}/{i}.png" for c in "ab" for i in range(more)))
        dated(place)
        sets = load_sets(f"folder:{place}", 8, root=tmp_path / "cache")
        counts.append(len(sets.train) + len(sets.test or ()))
    assert counts == [10, 50]


def test_an_archive_of_the_same_date_and_size_is_read_anew(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        with ZipFile(tmp_path / "set.zip", "w") as packed:
            packed.writestr(name, b"pixels")
        dated(tmp_path)
        assert entries_in(tmp_path / "set.zip") == [(name, "file")]


HOLDING = """
import sys, time
from pathlib import Path
from isd_nb.sources.packed import unfinished_folder
with unfinished_folder(Path(sys.argv[1])) as folder:
    (folder / "half.npy").touch()
    print("holding", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("show", [False, True])
def test_packing_draws_bars_only_where_they_are_wanted(show: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    titles = list[str]()
    monkeypatch.setattr(packed, "in_threads", lambda read, count, title: titles.append(title))
    images = ImageSet(None, None, (), [tmp_path / "1.png"], (1, 8, 8))
    packed.write_rows(tmp_path / "bank.npy", images, packed.Unread(str(tmp_path), 1), show)
    in_threads(lambda i: i, 1000, titles[0])
    assert bool(titles[0]) == bool(capfd.readouterr().err) == show


def test_two_processes_do_not_pack_to_one_place(tmp_path: Path) -> None:
    images, out = digits(copies=1)[1].subset(range(8)), tmp_path / "packed"
    other = Forked([sys.executable, "-c", HOLDING, out], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "holding\n"
        said = refusal(write_packed, out, {("bank", 16): images}, "digits")
        left = [path.name for path in (tmp_path / ".packed.unfinished").iterdir()]
    finally:
        other.kill()
        other.communicate()
    assert said == f"another process is writing {out}: wait for it, or choose another folder"
    assert sorted(left) == [".lock", "half.npy"], "the first one's work stays"
    write_packed(out, {("bank", 16): images}, "digits")  # it was killed: what it left is removed
    assert len(read_packed(out, 16)[1]) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    assert sorted(path.name for path in out.iterdir()) == ["about.json", "bank_16.npy", "bank_16_labels.npy"]


def test_names_that_begin_like_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("~root", "~no such user"):  # the first may be a user, too
        pictures(tmp_path / name, *(f"{c}/{i}.png" for c in "ab" for i in range(5)))
        assert len(load_sets(f"folder:{name}", 8, root="cache").train) == 8
        assert absolute(f"folder:{name}?labels={name}") == f"folder:{tmp_path / name}?labels={tmp_path / name}"
        pack(f"folder:{name}", f"packed{name}", 8, root="cache")
    (tmp_path / "packed~root").rename("~packed")
    assert len(load_sets("packed:~packed", 8).train) == 8
    with ZipFile("~set.zip", "w") as packed:
        for image in (tmp_path / "~root").rglob("*.png"):
            packed.write(image, f"all/{image.relative_to(tmp_path / '~root')}")
    assert len(load_sets("folder:~set.zip/all", 8, root="cache").train) == 8


def test_a_home_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    pictures(tmp_path / "set", *(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    said = f"~no user here/x is not in {tmp_path}, and ~no user here is the home of no user here: write the whole path"
    for data in ("folder:", "packed:", "folder:set?labels=", "folder:set?test="):
        done = call(isd_pack, tmp_path, f"{data}~no user here/x", "out", "--size", "8", "--root", "cache")
        assert done.returncode != 0 and done.stderr.strip() == f"isd_pack: {said}", (data, done.stderr)
    assert parse_folder("~no user here?labels=~no one").labels == "~no one"


def test_json_files_of_another_shape_are_named(tmp_path: Path) -> None:
    (tmp_path / "cmp").mkdir()
    for text in ("[]", "5", '"text"', '{"images": 5}', '{"images": [5, 5]}', '{"images": [{"fingerprint": 5}]}'):
        (tmp_path / "cmp" / "comparison.json").write_text(text)
        done = call(isd_compare, tmp_path, "--recipe", "digits", "--methods", "isd", "--out", "cmp")
        assert done.returncode == 2 and "cmp/comparison.json is damaged" in done.stderr, (text, done.stderr)
        assert done.stderr.strip().endswith("; remove it, and the same command writes it again")
    task = Task(find_recipe("digits"), str(tmp_path / "cmp"), {})
    for text in ("[]", "{}", '{"scores": 5}'):
        (tmp_path / "cmp" / "result.json").write_text(text)
        assert "result.json is damaged" in refusal(read_result, task)


def test_images_of_a_run_that_are_no_note_are_named(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    for images in (5, [], {"fingerprint": "a1"}):
        for name in ("images", "tested"):
            about = {"recipe": recipe_to_json(find_recipe("digits")), name: images}
            (run / "config.json").write_text(json.dumps(about))
            for done in (call(isd_train, tmp_path, "--out", "run", "--resume"), call(isd_eval, tmp_path, "run")):
                assert done.returncode == 2 and "run/config.json is damaged" in done.stderr, (images, done.stderr)
                assert len(done.stderr.strip().splitlines()) == 1


def test_a_file_of_settings_is_named_with_the_method_and_the_setting(tmp_path: Path) -> None:
    for text, said in (('{"nope": 1}', 'isd cannot be trained with nope=1: there is no setting \'nope\': '),
                       ('{"learning_rate": "high"}', 'isd cannot be trained with learning_rate="high": '),
                       ('{"seed": 1}', "seed is the same for all methods and cannot be set for isd alone")):
        (tmp_path / "s.json").write_text(f'{{"isd": {text}}}')
        done = call(isd_compare, tmp_path, "--recipe", "digits", "--methods", "isd", "--settings", "s.json")
        assert done.returncode == 2 and done.stderr.startswith(f"isd_compare: s.json: {said}"), done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_rows_that_a_cut_has_lost_are_stated(tmp_path: Path) -> None:
    write_metrics(tmp_path, [{"step": step, "loss": 0.125, "knn20_student": 0.5} for step in range(1, 9)])
    file = tmp_path / "metrics.csv"
    whole = file.read_bytes()
    file.write_bytes(whole[:200])
    with pytest.warns(UserWarning, match=r"is cut off in line 4, so that the rows from there on are lost"):
        assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    file.write_bytes(whole.replace(b"4,,0.125,,,,,,,,,0.5,\r\n", b"4,,0.1\r\n"))
    with pytest.warns(UserWarning, match=r"metrics.csv has 1 row of fewer values than columns"):
        assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 5, 6, 7, 8]
    file.write_bytes(whole)
    assert len(read_metrics(tmp_path)) == 8


CAFE, THE = "caf\u00e9", "th\u00e9"  # composed; decomposed below, as a Mac writes them


def apart(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def test_classes_of_two_splits_are_one_in_either_form(tmp_path: Path) -> None:
    for number, (train, test) in enumerate(((str, apart), (apart, str))):
        three = CAFE, THE, "tea"
        place = pictures(tmp_path / str(number), *(f"train/{train(c)}/{i}.png" for c in three for i in range(4)),
                         *(f"test/{test(c)}/{i}.png" for c in three for i in range(2)))
        sets = load_sets(f"folder:{place}", 8, root=tmp_path / "cache")
        assert sets.test is not None and sets.test.classes == sets.train.classes == tuple(sorted(map(train, three)))
        for path, label in zip(sets.test.paths, sets.test.labels.tolist()):
            assert apart(path.parent.name) == apart(sets.train.classes[label])


def test_two_forms_in_one_split_are_two_classes(tmp_path: Path) -> None:
    place = pictures(tmp_path / "set", *(f"train/{c}/{i}.png" for c in (CAFE, apart(CAFE)) for i in range(4)),
                     f"test/{CAFE}/0.png", f"test/{apart(CAFE)}/1.png")
    sets = load_sets(f"folder:{place}", 8, root=tmp_path / "cache")
    assert len(sets.train.classes) == 2 and sets.test is not None and sorted(sets.test.labels.tolist()) == [0, 1]
    pictures(tmp_path / "one", *(f"train/{c}/{i}.png" for c in (CAFE, THE) for i in range(4)),
             *(f"test/{c}/0.png" for c in (CAFE, apart(CAFE), THE)))
    assert "has classes that the training images lack" in refusal(load_sets, f"folder:{tmp_path / 'one'}", 8)


def test_files_of_a_table_are_found_in_either_form(tmp_path: Path) -> None:
    names = [f"K\u00e4fer{i}.png" for i in range(10)]
    for number, (file, entry) in enumerate(((apart, str), (str, apart), (str, str))):
        place = pictures(tmp_path / f"set{number}", *map(file, names))
        table = tmp_path / f"t{number}.csv"
        for ending in (".png", ""):
            lines = [f"{entry(name).removesuffix('.png')}{ending},{'ab'[i % 2]}" for i, name in enumerate(names)]
            table.write_text("\n".join(lines))
            sets = load_sets(f"folder:{place}?labels={table}", 8, root=tmp_path / "cache")
            assert len(sets.train) + len(sets.test or ()) == 10
            for path, label in zip(sets.train.paths, sets.train.labels.tolist()):
                assert label == int(path.stem[-1]) % 2
    pictures(tmp_path / "both", *names[:4], apart(names[0]))  # the exact one is meant
    table.write_text("\n".join(f"{name},{'ab'[i % 2]}" for i, name in enumerate(names[:4])))
    assert load_sets(f"folder:{tmp_path / 'both'}?labels={table}", 8, root=tmp_path / "cache").found.left_out == {
        f"images that {table.name} lacks": {"": 1}}


def test_tables_of_spreadsheets(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    for first, mark in (("sep=;", ";"), ("SEP=,", ","), ('"sep=|"', "|"), ("sep=\t", "\t"), ("\ufeffsep=;", ";")):
        for header in ("", f"label{mark}file\n"):
            rows = ("cat", "a.png"), ("dog", "b, c.png" if mark != "," else "b.png")
            lines = [mark.join(row if header else row[::-1]) for row in rows]
            table.write_text(f"{first}\n{header}" + "\n".join(lines))
            assert list(read_table(table).items()) == [row[::-1] for row in rows], (first, header)
    for text in ("cat,a.png\ncat,b.png", "kind?;picture\ncat;a.png\ncat;b.png", "Art,file\ncat,a.png",
                 "cat a.png\ndog b.png"):
        table.write_text(text)
        assert refusal(read_table, table) == (
            f"{table} has no file names of images in column 1, and column 2 has: write the file first and then the "
            "label, or name the columns file and label in the first line")
    table.write_text("b.png,v1.jpg\na,cat\nc,dog")  # names without endings, and a label that looks like a file
    assert read_table(table) == {"a": "cat", "b.png": "v1.jpg", "c": "dog"}
    for start in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1"):
        table.write_bytes(start + bytes(range(256)))
        assert refusal(read_table, table) == f"{table} is an Excel workbook: save it as CSV"


@pytest.mark.parametrize("data", ["folder:a\0b", "packed:a\0b", "folder:.?labels=a\0b", "folder:.?test=a\0b"])
def test_a_path_with_a_null_byte_is_one_sentence(tmp_path: Path, data: str) -> None:
    pictures(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    for command, given in (
        (isd_pack, (data, "out", "--size", "8")),
        (isd_eval, ("--encoder", "shipped:digits", "--data", data)),
        (isd_train, ("--data", data, "--out", "run", "--processes", "1")),
    ):
        done = call(command, tmp_path, *given)
        assert done.returncode == 2 and "a\\x00b is no path: it holds a null byte" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


ORDINARY = ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0dc1\u0dca\u200d\u0dbb\u0dd3", "\u72ac\u3000\u67f4",
            "family \U0001f469\u200d\U0001f469\u200d\U0001f467", "at 9.41\u202fAM", "a\\b")
ALIKE = ("x\\ny", "x\ny", "bad\\xff", os.fsdecode(b"bad\xff"))


def mean(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(2).mean(2)


def rows_of(table: Path) -> list[tuple[str, str]]:  # file, class
    with table.open(encoding="utf-8", newline="") as file:
        return [(row["file"], row["class"]) for row in csv.DictReader(file)]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse some of these names")
def test_tables_have_names_as_they_are(tmp_path: Path) -> None:
    place = pictures(tmp_path / "set", *(f"{name}/{name} {i}.png" for name in ORDINARY for i in range(5)))
    embed_to_file(mean, f"folder:{place}", tmp_path / "f.npy", 8, report=tmp_path / "report")
    for table in (tmp_path / "f.csv", tmp_path / "report" / "outliers.csv"):
        rows = rows_of(table)
        assert len(rows) == 30 and all((place / file).is_file() for file, _ in rows)
        assert all(Path(file).parent.name == name for file, name in rows)
    sets = load_sets(f"folder:{place}?labels={tmp_path / 'f.csv'}", 8, root=tmp_path / "cache")
    assert len(sets.train) + len(sets.test) == 30 and set(sets.train.classes) == {*ORDINARY}
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    embed_to_file(mean, f"folder:{place}", tmp_path / "f.parquet", 8)
    assert set(parquet.read_table(tmp_path / "f.parquet")["class"].to_pylist()) == {*ORDINARY}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse some of these names")
def test_names_that_differ_stay_apart_in_tables(tmp_path: Path) -> None:
    place = pictures(tmp_path / "set", *(f"{name}/{i}.png" for name in ALIKE for i in range(5)))
    embed_to_file(mean, f"folder:{place}", tmp_path / "f.csv", 8)
    rows = rows_of(tmp_path / "f.csv")
    assert len({file for file, _ in rows}) == 20 and len({name for _, name in rows}) == 4
    assert {file for file, _ in rows} == {f"{encodable(name)}/{i}.png" for name in ALIKE for i in range(5)}
    assert [printable(name) for name in ALIKE] == [r"x\ny", r"x\x0ay", r"bad\\xff", r"bad\xff"]
    lines = (f"{encodable(name)}/{i}.png,{i % 2}\n" for name in ALIKE[2:] for i in range(5))
    (tmp_path / "some.csv").write_text("file,label\n" + "".join(lines))
    sets = load_sets(f"folder:{place}?labels={tmp_path / 'some.csv'}", 8, root=tmp_path / "cache")
    assert len(sets.train) + len(sets.test) == 10


def test_sets_of_odd_names_are_those_of_earlier_versions(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"1")
    images = ImageSet(None, torch.tensor([1]), (ORDINARY[0], "two\nlines", os.fsdecode(b"caf\xe9"), ORDINARY[4]),
                      FileList.of(tmp_path, ["1.png"]), (1, 8, 8))
    assert fingerprint(images) == "f98e6ee7ddc227fb4a36bafc483e75e9"


def test_a_path_that_is_no_utf8_is_refused_before_training(tmp_path: Path) -> None:
    out, recipe = tmp_path / os.fsdecode(b"run\xf5"), find_recipe("digits")
    for said in (refusal(run_directory, out, recipe, False), refusal(training.train, recipe, digits()[0], out),
                 refusal(to_share, tmp_path, out)):
        assert r"run\xf5 is not UTF-8" in said and "choose another out (--out)" in said
