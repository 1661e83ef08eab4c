"""Keys shuffled among the parts of a batch, a queue that begins with keys of real images: off, nothing changes."""
from dataclasses import replace

import pytest
import torch

from isd_nb.engine.state import prepare_training
from isd_nb.engine.training import fill_queue, train
from isd_nb.isd import ISD
from isd_nb.method import shuffle_order
from isd_nb.methods.building import build_method, find_method, with_method
from isd_nb.methods.moco_v2 import MoCoV2
from isd_nb.recipe import Recipe, find_recipe, recipes
from isd_nb.sources.digits import digits

IMAGES = digits()[0].subset(range(100))
TOY = Recipe("toy", steps=6, batch_size=16, queue_size=40, width=4, projector=(10, 6), predictor=(8,), evaluations=1,
             precision="float32")
VIEWS = tuple(torch.rand(16, 1, 16, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1))


def built(splits: int = 1, **options: bool) -> ISD:
    return build_method(replace(TOY, batch_norm_splits=splits, options=options), IMAGES)


def test_off_they_change_nothing() -> None:
    plain, off = built(2), built(2, shuffle_keys=False, prefill=False, symmetric=False)
    torch.testing.assert_close(plain.state_dict(), off.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(plain(*VIEWS).loss, off(*VIEWS).loss, rtol=0, atol=0)
    assert (plain.splits, plain.prefill) == (0, 0)


def test_shuffled_keys_come_back_in_the_order_of_their_queries() -> None:
    "Where batch norm treats the batch as one part, shuffling is seen nowhere; in parts, the keys have other company."
    whole = built(1), built(1, shuffle_keys=True)
    torch.testing.assert_close(whole[0](*VIEWS).keys, whole[1](*VIEWS).keys)
    parts = built(4), built(4, shuffle_keys=True)
    plain, shuffled = (method(*VIEWS) for method in parts)
    assert (plain.keys - shuffled.keys).abs().max() > 1e-3
    queries = [method.compare(*VIEWS, {})[0] for method in parts]
    torch.testing.assert_close(*queries)  # they stay where they are
    order = torch.cat([torch.arange(start, 16, 4) for start in range(4)])  # by hand: every fourth image in a part
    by_hand = parts[0].compare(VIEWS[0], VIEWS[1][order], {})[1][order.argsort()]
    torch.testing.assert_close(shuffled.keys, by_hand)


def test_moco_shuffles_as_isd_does_and_is_none() -> None:
    recipe = replace(TOY, predictor=(), batch_norm_splits=4)
    moco = build_method(with_method(recipe, "moco_v2"), IMAGES)
    isd = build_method(replace(recipe, options={"shuffle_keys": True}), IMAGES)
    assert isinstance(moco, MoCoV2) and not isinstance(moco, ISD)
    for ours, theirs in zip(moco.compare(*VIEWS, {}), isd.compare(*VIEWS, {}), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_queue_begins_with_keys_of_the_images_that_come_last() -> None:
    recipe = replace(TOY, options={"prefill": True})
    state = prepare_training(recipe, IMAGES, "cpu")
    before = {name: value.clone() for name, value in state.method.state_dict().items()}
    fill_queue(state, None)
    after, filled = state.method.state_dict(), state.method.queue
    assert [name for name in after if not torch.equal(before[name], after[name])] == ["queue.anchors", "queue.count"]
    assert int(filled.count) == 48 and state.step == 0  # 3 batches are the first that fill 40 places
    torch.testing.assert_close(filled.anchors.norm(dim=1), torch.ones(40))
    straight = prepare_training(recipe, IMAGES, "cpu")
    fill_queue(straight, None)
    torch.testing.assert_close(straight.method.queue.anchors, filled.anchors, rtol=0, atol=0)
    spread = (filled.anchors @ filled.anchors.T).mean()
    random = before["queue.anchors"] @ before["queue.anchors"].T
    assert spread > random.mean() + 0.1  # keys of an untrained net lie close together, random directions do not


def test_a_filled_queue_trains_and_resumes(tmp_path) -> None:
    recipe = replace(TOY, options={"prefill": True, "shuffle_keys": True}, batch_norm_splits=2)
    trained = train(recipe, IMAGES, tmp_path / "run", device="cpu", show=False)
    assert int(trained.method.queue.count) == 48 + 6 * 16
    again = train(recipe, IMAGES, tmp_path / "run", resume=True, device="cpu", show=False)  # it is not filled again
    torch.testing.assert_close(again.method.state_dict(), trained.method.state_dict(), rtol=0, atol=0)


def test_the_authors_recipes_shuffle() -> None:
    theirs = {name: r for name, r in recipes.items() if name.endswith("_authors")}
    assert all(r.options == {"shuffle_keys": True} for r in theirs.values())
    four = {name for name, r in theirs.items() if r.batch_norm_splits == 4}
    assert four == {"imagenet_r50_authors", "imagenet_r50_byol_authors"}
    assert {r.batch_norm_splits for r in theirs.values()} == {2, 4}  # as many as the authors' GPUs
    assert not find_recipe("digits").options and len(theirs) == 9


@pytest.mark.parametrize("name", ["byol", "byol_asym", "msf"])
def test_methods_without_anchors_of_their_own_shuffle_too(name: str) -> None:
    "With batch norm in parts the keys are those of the teacher on the shuffled batch; without parts nothing changes."
    recipe = replace(TOY, method=name, predictor=(6,), precision="float32")
    views = [torch.rand(8, *IMAGES.shape, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    order = shuffle_order(8, 2)
    for splits in (1, 2):
        both = [replace(recipe, batch_norm_splits=splits, options={"shuffle_keys": on}) for on in (False, True)]
        plain, shuffled = (build_method(one, IMAGES) for one in both)
        assert (plain.splits, shuffled.splits) == (0, splits)
        torch.testing.assert_close(shuffled.state_dict(), plain.state_dict(), rtol=0, atol=0)
        keys, moved = plain.compare(*views, {})[1], shuffled.compare(*views, {})[1]
        expected = plain.compare(views[0], views[1][order], {})[1][order.argsort()] if splits > 1 else keys
        torch.testing.assert_close(moved, expected)
        assert torch.allclose(moved, keys, atol=1e-5) == (splits == 1)


def test_a_method_without_the_option_is_as_before() -> None:
    "What old run directories hold: no options."
    method = build_method(replace(TOY, method="byol_asym", predictor=(6,), batch_norm_splits=2, options={}), IMAGES)
    assert method.splits == 0


@pytest.mark.parametrize("parent", ["byol_asym", "msf"])
def test_a_method_derived_from_one_that_shuffles_may_have_options_of_its_own(parent: str) -> None:
    kind = find_method(parent)
    mine = type("Mine", (kind,), {"options": {name: v for name, v in kind.options.items() if name != "shuffle_keys"}})
    recipe = replace(TOY, method=parent, predictor=(6,), batch_norm_splits=2, options={})
    student = build_method(recipe, IMAGES).student
    assert mine.from_recipe(student, recipe, IMAGES).splits == 0
