"""The exact search: what the coarse scores may cost, what the bound says, and that a wrong bound would be noticed."""
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isd_nb import evaluation
from isd_nb.kernels import nearest_neighbours as search

KINDS = ("random", "clusters", "crowd", "collapsed", "outlier")


def features(kind: str, rows: int, width: int = 40, seed: int = 0) -> Tensor:  # (rows, width) of unit length
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, width, generator=generator)
    centres = 3 * torch.randn(30, width, generator=torch.Generator().manual_seed(7))
    made = {"random": noise, "clusters": centres[torch.arange(rows) % 30] + noise, "crowd": 15 + noise,
            "collapsed": 500 + noise, "outlier": 15 + noise}[kind]
    if kind == "outlier":
        made[rows // 2] *= -1
    return F.normalize(made, dim=1)


def share(a: Tensor, b: Tensor) -> float:  # rows (M, k) of two searches
    "How many of the neighbours are the same, in any order."
    return (a[:, :, None] == b[:, None]).any(2).double().mean().item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [3, 40, 600])
def test_no_other_key_exceeds_the_limit(kind: str, width: int) -> None:
    keys, queries = features(kind, 3000, width), features(kind, 50, width, seed=1)
    memory = torch.empty(len(queries) * len(keys), dtype=torch.bfloat16)
    columns, limit = search.candidates(queries, search.prepare(keys, keys.mean(0)), 64, memory)
    exact = queries.double() @ keys.double().T
    for scores in (exact, (queries[:, None] * keys).sum(2).double(), (queries @ keys.T).double()):
        assert (scores.scatter(1, columns, -torch.inf).amax(1) <= limit).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("k", "block"), [(1, (1024, 65536)), (20, (64, 65536)), (20, (33, 1100)), (7, (1024, 701))])
def test_the_answers_are_those_of_the_full_search(kind: str, k: int, block: tuple[int, int]) -> None:
    keys, queries = features(kind, 5003), features(kind, 97, seed=1)
    exact = queries.double() @ keys.double().T  # (97, 5003)
    values, rows = search.proven_search(keys, queries, k, block)
    torch.testing.assert_close(values, search.full_search(keys, queries, k, block)[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(values.double(), exact.gather(1, rows), rtol=0, atol=1e-6)
    assert (exact.topk(k).values[:, -1:] - exact.gather(1, rows)).max() < 1e-6 and (values.diff(dim=1) <= 0).all()
    assert all(len(set(row)) == k for row in rows.tolist())
    proven = search.coarse_search(keys, queries, k, block)[2]
    assert proven.double().mean() > 0.95 or kind in ("collapsed", "outlier")


def trap(queries: Tensor, copies: int = 200) -> Tensor:  # (M * copies + 4000, F)
    "Around every query, keys that bfloat16 cannot tell apart."
    generator = torch.Generator().manual_seed(3)
    near = queries.repeat_interleave(copies, 0)
    near = near + 0.002 * torch.randn(near.shape, generator=generator)
    return F.normalize(torch.cat([near, torch.randn(4000, queries.shape[1], generator=generator)]), dim=1)


def test_near_ties_are_not_proven_and_answered_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    "And with no bound, or a rounding forgotten, the neighbours are wrong: this test can fail."
    queries = features("random", 30, seed=1)
    keys = trap(queries)
    right = search.full_search(keys, queries, 5, (1024, 65536))[1]
    assert not search.coarse_search(keys, queries, 5, (1024, 65536))[2].any()
    assert torch.equal(search.proven_search(keys, queries, 5, (1024, 65536))[1], right)
    monkeypatch.setattr(search, "slack", lambda asked, keys: torch.full((len(asked.lost),), -torch.inf).double())
    assert share(search.proven_search(keys, queries, 5, (1024, 65536))[1], right) < 0.9


def test_a_query_in_the_trap_among_others_is_searched_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = features("random", 300, seed=1)
    keys = trap(queries[:20])
    asked = []
    full = search.full_search
    monkeypatch.setattr(search, "full_search", lambda bank, q, k, block: (asked.append(q), full(bank, q, k, block))[1])
    values, rows = search.proven_search(keys, queries, 5, (1024, 65536))
    assert len(asked) == 1 and torch.equal(asked[0][:20], queries[:20])
    assert len(asked[0]) < 150  # and a few that have trapped keys among their candidates
    expected = full(keys, queries, 5, (1024, 65536))
    torch.testing.assert_close(values, expected[0], rtol=0, atol=1e-6)
    assert torch.equal(rows, expected[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_copies_stand_in_the_order_of_their_rows(dtype: torch.dtype) -> None:
    "Also where the copies lie in different blocks, and in any precision."
    keys = features("clusters", 1500).to(dtype).repeat(3, 1)
    queries = F.normalize(features("clusters", 61, seed=1).to(dtype).float(), dim=1)
    values, rows, proven = search.coarse_search(keys, queries, 9, (32, 1300))
    values, rows = values[proven].unflatten(1, (3, 3)), rows[proven].unflatten(1, (3, 3))
    assert proven.double().mean() > 0.9
    assert torch.equal(values, values[..., :1].expand_as(values))
    assert torch.equal(rows, rows[..., :1] + torch.tensor([0, 1500, 3000]))


def test_the_search_gives_up_after_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, queries = torch.ones(3000, 5) / 5**0.5, torch.ones(100, 5) / 5**0.5
    blocks, second_look = [], search.score_again
    monkeypatch.setattr(search, "score_again", lambda q, *rest: (blocks.append(len(q)), second_look(q, *rest))[1])
    assert torch.equal(search.proven_search(keys, queries, 20, (16, 1000))[1], torch.arange(20).expand(100, 20))
    assert blocks == [16]


def test_who_takes_the_coarse_search(monkeypatch: pytest.MonkeyPatch) -> None:
    "Many queries, a long bank, a processor for it; and `nearest` answers the same either way."
    keys, queries = features("crowd", 17000), features("crowd", 1030, seed=1)
    monkeypatch.setattr(search, "has_bfloat16", lambda device: True)
    assert search.coarse_pays(keys, queries, 20, (1024, 65536))
    assert not search.coarse_pays(keys, queries[:9], 20, (1024, 65536))
    assert not search.coarse_pays(keys[:900], queries, 20, (1024, 65536))
    assert not search.coarse_pays(keys, queries, 2000, (1024, 65536))
    coarse = search.nearest(keys, queries)
    monkeypatch.setattr(search, "has_bfloat16", lambda device: False)
    assert not search.coarse_pays(keys, queries, 20, (1024, 65536))
    full = evaluation.nearest(keys, queries)
    torch.testing.assert_close(coarse[0], full[0], rtol=0, atol=1e-6)
    assert share(coarse[1], full[1]) > 0.99 and "nearest" in evaluation.__all__
