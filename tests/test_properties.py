"""What holds for any input of a kind: queue, loss, views, neighbours, settings, checkpoints and image files.

HYPOTHESIS_PROFILE=more python -m pytest tests/test_properties.py    (fifty times the examples, new ones every time)
"""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from isd_nb.data import ImageSet, decode_image
from isd_nb.encoders import BackboneConfig, Encoder, build_backbone, load_encoder, save_encoder
from isd_nb.errors import InputError
from isd_nb.evaluation import knn_predict
from isd_nb.kernels.nearest_neighbours import nearest
from isd_nb.loss import soft_label_loss, soft_labels, streaming_soft_label_loss
from isd_nb.methods.checkpoints import open_encoder
from isd_nb.protocols.storage import load_checkpoint, save_checkpoint
from isd_nb.queue import AnchorQueue
from isd_nb.recipe import Recipe, recipe_from_json, recipe_to_json, recipes
from isd_nb.views import GENTLE, PLAIN, STRONG, WEAK, ViewRecipe, Views

usual = dict(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.register_profile("quick", derandomize=True, database=None, max_examples=20, **usual)
settings.register_profile("more", max_examples=1000, **usual)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

numbers = st.integers(0, 2**31 - 1)  # seeds


def unit(rows: int, dim: int, seed: int) -> torch.Tensor:  # float64 (rows, dim)
    "Random unit vectors; float32 numbers in double precision, so that both precisions see the same."
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


# --- the queue -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 4), st.lists(st.integers(0, 25), max_size=8), numbers)
def test_a_queue_is_the_end_of_a_list(size: int, dim: int, batches: list[int], seed: int) -> None:
    queue = AnchorQueue(size, dim, torch.Generator().manual_seed(seed))
    expected = list(queue.anchors.clone())
    for i, rows in enumerate(batches):
        keys = unit(rows, dim, seed ^ (i + 1)).float() if rows else torch.empty(0, dim)
        queue.enqueue(3 * keys)
        expected += list(keys)
    torch.testing.assert_close(queue.ordered(), torch.stack(expected[-size:]), rtol=0, atol=1e-6)
    assert int(queue.count) == sum(batches)


@given(st.integers(2, 6), st.lists(st.booleans(), min_size=1, max_size=12))
def test_keys_without_a_direction_change_no_slot(size: int, good: list[bool]) -> None:
    queue = AnchorQueue(size, 3, torch.Generator().manual_seed(0))
    queue.enqueue(torch.stack([torch.ones(3) if g else torch.full((3,), float("nan")) for g in good]))
    assert queue.anchors.isfinite().all()
    torch.testing.assert_close(queue.anchors.norm(dim=1), torch.ones(size))


# --- the loss --------------------------------------------------------------------------------------------------------


def naive_loss(q: torch.Tensor, k: torch.Tensor, a: torch.Tensor, student: float, teacher: float) -> torch.Tensor:
    "KL(teacher || student) row by row and anchor by anchor."
    losses = []
    for query, key in zip(q, k):
        r = torch.tensor([float(key @ anchor) / teacher for anchor in a], dtype=torch.float64).softmax(0)
        p = torch.stack([query @ anchor / student for anchor in a]).softmax(0)
        losses.append(sum(r_j * (r_j.log() - p_j.log()) for r_j, p_j in zip(r, p) if r_j > 0))
    return sum(losses) / len(losses)


temperatures = st.floats(0.02, 1.0)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(2, 5))  # B, K, D


@given(shapes, temperatures, temperatures, numbers)
def test_both_losses_are_the_naive_one(shape: tuple[int, int, int], student: float, teacher: float, seed: int) -> None:
    B, K, D = shape
    q, k, a = unit(B, D, seed).requires_grad_(), unit(B, D, seed ^ 1), unit(K, D, seed ^ 2)
    want = naive_loss(q, k, a, student, teacher)
    (gradient,) = torch.autograd.grad(want, q)
    for loss in (soft_label_loss, streaming_soft_label_loss):
        got = loss(q, k, a, student, teacher)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(torch.autograd.grad(got, q)[0], gradient, rtol=1e-5, atol=1e-6)


@given(shapes, temperatures, numbers)
def test_what_the_loss_does_not_depend_on(shape: tuple[int, int, int], teacher: float, seed: int) -> None:
    B, K, D = shape
    q, k, a = (unit(n, D, seed ^ i) for i, n in enumerate((B, B, K)))
    loss, g = soft_label_loss(q, k, a, 0.1, teacher), torch.Generator().manual_seed(seed)
    rows, slots = torch.randperm(B, generator=g), torch.randperm(K, generator=g)
    turn = torch.linalg.qr(torch.randn(D, D, generator=g).double())[0]
    for other in (
        (q[rows], k[rows], a),
        (q, k, a[slots]),
        (q @ turn, k @ turn, a @ turn),
        (q.repeat(2, 1), k.repeat(2, 1), a),
    ):
        torch.testing.assert_close(streaming_soft_label_loss(*other, 0.1, teacher), loss, rtol=1e-6, atol=1e-9)
    assert loss >= -1e-12
    assert abs(float(soft_label_loss(k, k, a, teacher, teacher))) < 1e-9
    torch.testing.assert_close(soft_labels(k, a, teacher).sum(1), torch.ones(B).double())


# --- views -----------------------------------------------------------------------------------------------------------

view_recipes = st.one_of(
    st.sampled_from([STRONG, WEAK, GENTLE, PLAIN]),
    st.builds(
        ViewRecipe,
        crop_scale=st.sampled_from([(0.05, 0.3), (0.5, 1.5)]),
        rotation=st.sampled_from([0, 30]),
        hue=st.sampled_from([0, 0.5]),
        blur=st.sampled_from([0, 1]),
        noise=st.sampled_from([0, 0.2]),
        grey=st.sampled_from([0, 1]),
    ),
)


@given(
    view_recipes,
    st.integers(1, 5),
    st.sampled_from([1, 3]),
    st.integers(2, 12),
    st.integers(2, 12),
    st.integers(1, 10),
    numbers,
)
def test_views_are_pictures_and_repeat(
    recipe: ViewRecipe, count: int, channels: int, high: int, wide: int, size: int, seed: int
) -> None:
    images = torch.randint(
        0, 256, (count, channels, high, wide), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    before, look = images.clone(), Views(recipe, size)
    views = look(images, torch.Generator().manual_seed(seed))
    assert views.shape == (count, channels, size, size) and views.dtype == torch.float32
    assert views.isfinite().all() and views.min() >= 0 and views.max() <= 1
    assert torch.equal(views, look(images, torch.Generator().manual_seed(seed))) and torch.equal(images, before)
    part = look(images[:1], torch.Generator().manual_seed(seed), (0, 1, count))
    torch.testing.assert_close(part, views[:1], rtol=0, atol=1e-5)


# --- neighbours ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(1, 6), st.data(), numbers)
def test_neighbours_are_those_of_a_stable_sort(count: int, tests: int, data: st.DataObject, seed: int) -> None:
    k, g = data.draw(st.integers(1, count)), torch.Generator().manual_seed(seed)
    places = torch.tensor([[3.0, 4.0], [4.0, 3.0], [0.0, 5.0], [-3.0, 4.0]])  # few directions, so that most are tied
    bank, asked = (places[torch.randint(4, (n,), generator=g)] for n in (count, tests))
    labels = torch.randint(3, (count,), generator=g)
    exact = (asked[:, None] * bank[None]).sum(2)  # whole numbers: no rounding
    rows = torch.tensor([sorted(range(count), key=lambda j: (-float(e[j]), j))[:k] for e in exact])
    assert torch.equal(nearest(bank, asked, k)[1], rows)
    votes = [[labels[r].item() for r in row] for row in rows]
    majority = [max(dict.fromkeys(v), key=v.count) for v in votes]  # of equal counts the label that comes first
    assert knn_predict(bank, labels, asked, k).tolist() == majority


# --- settings --------------------------------------------------------------------------------------------------------

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**70),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(-2, 3), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.just({"blur": "much"}),
    st.just([0.5, "a"]),
)


@given(st.sampled_from(sorted(recipes)), st.integers(0, 10**6), st.floats(0, 1))
def test_a_recipe_survives_json(name: str, seed: int, momentum: float) -> None:
    recipe = replace(recipes[name], seed=seed, momentum=(momentum, 1))
    again = recipe_from_json(recipe_to_json(recipe))
    assert again == recipe and recipe_to_json(again) == recipe_to_json(recipe)


@given(st.sampled_from(sorted(vars(Recipe("x")))), values)
def test_a_setting_is_taken_or_refused_in_one_sentence(name: str, value: object) -> None:
    try:
        usual = recipe_to_json(Recipe("x"))
        again = recipe_from_json(usual | {name: value})
    except InputError as error:
        assert name in str(error) and "\n" not in str(error)
    else:
        if isinstance(value, dict):  # what it does not name is as it would be without it
            value = recipe_to_json(recipe_from_json(usual | {name: {}}))[name] | value
        elif name == "momentum" and not isinstance(value, list):  # one number from the first step to the last
            value = [value, value]
        assert json.dumps(recipe_to_json(again), sort_keys=True) == json.dumps(usual | {name: value}, sort_keys=True)


# --- files -----------------------------------------------------------------------------------------------------------


def broken(whole: bytes, cut: bool, where: float, bit: int) -> bytes:
    "A file that is cut off, or in which one bit has changed."
    at = int(where * (len(whole) - 1))
    return whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]


damage = (st.booleans(), st.floats(0, 1), st.integers(0, 7))


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A small encoder in a file."
    torch.manual_seed(0)
    config = BackboneConfig("tiny", 1, width=4)
    path = tmp_path_factory.mktemp("encoders") / "whole.safetensors"
    save_encoder(path, {"student": Encoder(build_backbone(config), [0.5], [0.5])}, config, 8)
    return path


@given(*damage)
def test_a_damaged_encoder_is_refused_or_has_only_other_numbers(
    encoder_file: Path, cut: bool, where: float, bit: int
) -> None:
    whole, path = encoder_file.read_bytes(), encoder_file.with_name("broken.safetensors")
    path.write_bytes(broken(whole, cut, where, bit))
    try:
        encoder = open_encoder(str(path))
    except InputError as error:
        assert path.name in str(error)
        return
    want, got = load_encoder(encoder_file, "student").state_dict(), encoder.state_dict()
    assert not cut and {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in want.items()}
    assert sum(int((got[k] != want[k]).sum()) for k in want) <= 1  # safetensors has no sums to check the numbers with


@pytest.mark.filterwarnings("ignore:.*cannot be read")
@given(*damage)
def test_a_damaged_checkpoint_is_refused_or_whole(
    tmp_path_factory: pytest.TempPathFactory, cut: bool, where: float, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder, 3, dict(step=3, weights=torch.arange(50.0)))
    (path,) = (
        (folder / "checkpoints").glob("*")
        if (folder / "checkpoints").is_dir()
        else [p for p in folder.rglob("*") if p.is_file()]
    )
    whole = path.read_bytes()
    path.write_bytes(broken(whole, cut, where, bit))
    try:
        state = load_checkpoint(folder)
    except InputError as error:
        assert path.name in str(error) or str(folder) in str(error)
        return
    assert state is not None and state["step"] == 3
    assert torch.equal(state["weights"], torch.arange(50.0)), "loaded silently wrong"


def pictures() -> list[bytes]:
    "The same small picture in several formats."
    image, files = Image.effect_mandelbrot((16, 12), (-2, -1.5, 1, 1.5), 20).convert("RGB"), []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        image.save(file := io.BytesIO(), kind)
        files.append(file.getvalue())
    return files


@given(st.sampled_from(pictures()), *damage)
def test_a_damaged_picture_is_read_or_an_oserror(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, cut: bool, where: float, bit: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "picture"
    path.write_bytes(broken(whole, cut, where, bit))
    try:
        pixels = decode_image(path, 8)
    except OSError:
        return
    assert pixels.shape == (3, 8, 8) and pixels.dtype == torch.uint8


@given(st.binary(max_size=200))
def test_any_bytes_are_no_picture(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.png"
    path.write_bytes(content)
    images = ImageSet(None, paths=(path,), shape=(3, 8, 8))
    with pytest.raises((OSError, InputError)):
        decode_image(path, 8)
    with pytest.raises(InputError, match=r"bytes\.png"), pytest.warns(UserWarning, match="cannot be read"):
        images.get([0])
