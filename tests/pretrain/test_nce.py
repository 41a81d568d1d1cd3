"""Tiled InfoNCE equals the plain form at any size, temperature and precision, in bounded memory."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.objectives.nce import nce
from pretrain.objectives.tiles import spans

TILE = next(spans(1 << 20, torch.device("cpu"))).stop


def plain(p, q, temperature, ids=None, normalize=True):
    """The definition of InfoNCE, with the whole matrix in memory."""
    if normalize:
        p, q = (F.normalize(side, dim=1, eps=1e-8) for side in (p, q))
    similarity = p @ q.T / temperature
    if ids is not None:
        same = (ids[:, None] == ids[None]).any(-1) & ~torch.eye(len(p), dtype=torch.bool)
        similarity = similarity.masked_fill(same, -torch.inf)
    matches = torch.arange(len(p))
    return F.cross_entropy(similarity, matches) + F.cross_entropy(similarity.T, matches)


def with_gradients(loss, p, q, temperature, **options):
    leaves = [p.clone(), q.clone(), torch.tensor([temperature], dtype=p.dtype)]
    for leaf in leaves:
        leaf.requires_grad_()
    value = loss(*leaves, **options)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def assert_same(ours, reference, bound):
    for value, other in zip(ours, reference, strict=True):
        assert value.shape == other.shape and value.dtype == other.dtype
        assert (value - other).abs().max() <= bound * other.abs().max() + 1e-10


@settings(max_examples=12, deadline=None)
@given(
    rows=st.one_of(st.integers(1, 40), st.sampled_from([TILE - 1, TILE, TILE + 1])),
    width=st.integers(1, 12),
    temperature=st.sampled_from([0.001, 0.03, 0.07, 1.0, 10.0]),
    distinct_ids=st.sampled_from([None, 1, 3, 10**6]),
    seed=st.integers(0, 2**31),
)
def test_nce_has_value_and_gradients_of_the_plain_form(
    rows, width, temperature, distinct_ids, seed
):
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2))
    ids = None
    if distinct_ids is not None:
        ids = torch.randint(distinct_ids, (rows, 2), generator=generator)
    ours = with_gradients(nce, p, q, temperature, ids=ids)
    assert_same(ours, with_gradients(plain, p, q, temperature, ids=ids), 1e-9)


@pytest.mark.parametrize("rows", [7, TILE + 5])
def test_nce_in_float32_is_the_plain_form_to_1e_6(rows):
    torch.manual_seed(0)
    p, q = torch.randn(rows, 64), torch.randn(rows, 64)
    ours = with_gradients(nce, p, q, 0.07)
    exact = [value.float() for value in with_gradients(plain, p.double(), q.double(), 0.07)]
    assert_same(ours[:1], exact[:1], 1e-6)
    # Similarities of 14 have a rounding error of 1e-6 themselves.
    assert_same(ours[1:], exact[1:], 5e-6)


def test_nce_passes_gradcheck():
    torch.manual_seed(0)
    p, q = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0], [1], [0], [2], [3]])
    assert torch.autograd.gradcheck(lambda *leaves: nce(*leaves, ids=ids), (p, q, temperature))


@pytest.mark.parametrize("rows", [1, 4, TILE + 100, 2 * TILE])
@pytest.mark.parametrize("temperature", [0.001, 0.03, 1.0])
def test_nce_of_identical_rows_is_twice_the_logarithm_of_their_number(rows, temperature):
    same = torch.randn(1, 16).repeat(rows, 1)
    loss = nce(same, same.clone(), temperature).item()
    assert loss == pytest.approx(2 * math.log(rows), rel=1e-6)


def test_nce_of_perfect_pairs_is_zero_and_of_swapped_pairs_large_at_a_tiny_temperature():
    pairs = torch.eye(8)
    assert nce(pairs, pairs, 0.001).item() == 0
    assert nce(pairs, pairs.roll(1, 0), 0.001).item() == pytest.approx(2000)


def test_a_large_similarity_in_a_later_tile_neither_overflows_nor_hides_the_first():
    p, q = torch.zeros(TILE + 1, 2), torch.zeros(TILE + 1, 2)
    p[:, 0] = q[:, 0] = -1
    p[-1], q[-1] = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])
    ours = with_gradients(nce, p, q, 0.001)
    assert all(value.isfinite().all() for value in ours)
    assert ours[0].item() == pytest.approx(2 * TILE * math.log(TILE) / (TILE + 1), rel=1e-6)


def test_half_precision_rows_are_compared_in_float32_and_get_gradients_in_their_own():
    torch.manual_seed(0)
    p, q = (torch.randn(6, 8).bfloat16() for _ in range(2))
    halves = [p.clone().requires_grad_(), q.clone().requires_grad_()]
    loss = nce(*halves, 0.03)
    loss.backward()
    exact = with_gradients(plain, p.double(), q.double(), 0.03)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact[0].item(), rel=1e-6)
    for half, reference in zip(halves, exact[1:], strict=False):
        assert half.grad.dtype == torch.bfloat16
        assert (half.grad.double() - reference).abs().max() < 0.005 * reference.abs().max()


def test_nce_is_exact_when_forward_and_backward_run_inside_autocast():
    torch.manual_seed(0)
    # Nearly collinear features, as masked and whole states are early in training.
    base = torch.randn(1, 64)
    p, q = ((base + 0.05 * torch.randn(32, 64)).bfloat16() for _ in range(2))
    exact, single = p.double().requires_grad_(), p.float().requires_grad_()
    nce(exact, q.double(), 0.03).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nce(single, q, 0.03).backward()
    assert (single.grad - exact.grad).abs().max() / exact.grad.abs().max() < 1e-4


@pytest.mark.parametrize("learning", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_leaves_without_gradient_change_nothing_for_the_others(learning):
    torch.manual_seed(0)
    values = [torch.randn(5, 4), torch.randn(5, 4), torch.tensor(0.1)]
    leaves = [value.clone().requires_grad_() for value in values]
    expected = torch.autograd.grad(nce(*leaves), leaves)
    some = [value.clone().requires_grad_(i in learning) for i, value in enumerate(values)]
    gradients = torch.autograd.grad(nce(*some), [some[index] for index in learning])
    for index, gradient in zip(learning, gradients, strict=True):
        torch.testing.assert_close(gradient, expected[index], rtol=0, atol=0)


def test_nce_without_gradients_gives_the_same_value():
    p, q = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    with torch.no_grad():
        value = nce(p, q, 0.1)
    assert not value.requires_grad and torch.equal(value, nce(p, q, 0.1).detach())


def test_nce_used_twice_in_one_graph_sums_its_gradients():
    p, q = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    (nce(p, q, 0.1) + 3 * nce(q, p * 2, 0.2)).backward()
    ours = p.grad.clone(), q.grad.clone()
    p.grad = q.grad = None
    (plain(p, q, 0.1) + 3 * plain(q, p * 2, 0.2)).backward()
    assert_same(ours, (p.grad, q.grad), 1e-9)


def test_nce_without_rows_is_zero_and_has_a_gradient():
    p = torch.randn(0, 8, requires_grad=True)
    loss = nce(p, torch.randn(0, 8), 0.1)
    loss.backward()
    assert loss.item() == 0 and p.grad.shape == (0, 8)


def test_rows_of_zeros_have_finite_gradients():
    p = torch.randn(3, 4)
    p[1] = 0
    assert all(value.isfinite().all() for value in with_gradients(nce, p, torch.randn(3, 4), 0.1))


def test_rows_that_share_an_id_are_not_negatives_of_each_other():
    torch.manual_seed(0)
    p, q = torch.randn(4, 8), torch.randn(4, 8)
    p[1], q[1] = p[0], q[0]  # the same sample twice
    apart = torch.tensor([[0, 10], [1, 11], [2, 12], [3, 13]])
    same_image, same_caption = apart.clone(), apart.clone()
    same_image[1, 0], same_caption[1, 1] = 0, 10
    without = nce(p, q, 0.1)
    torch.testing.assert_close(nce(p, q, 0.1, ids=apart), without)
    assert nce(p, q, 0.1, ids=same_image) < without - 0.1
    torch.testing.assert_close(nce(p, q, 0.1, ids=same_caption), nce(p, q, 0.1, ids=same_image))


def test_a_batch_of_one_sample_repeated_has_no_negatives_and_no_loss():
    p, q = (torch.randn(4, 8, requires_grad=True) for _ in range(2))
    loss = nce(p, q, 0.1, ids=torch.zeros(4, 1, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and p.grad.abs().max() < 1e-6


def test_nce_without_normalisation_takes_the_rows_as_they_are():
    torch.manual_seed(0)
    p, q = (torch.randn(5, 4, dtype=torch.float64) for _ in range(2))
    ours = with_gradients(nce, p, q, 0.5, normalize=False)
    assert_same(ours, with_gradients(plain, p, q, 0.5, normalize=False), 1e-9)


@pytest.mark.parametrize(
    "q, ids", [((4, 8), None), ((5, 7), None), ((5, 8), (4, 1)), ((5, 8), (5,))], ids=str
)
def test_sides_that_do_not_match_are_refused(q, ids):
    rows_ids = None if ids is None else torch.zeros(ids, dtype=torch.int64)
    with pytest.raises(ValueError, match="as many rows"):
        nce(torch.randn(5, 8), torch.randn(q), 0.1, ids=rows_ids)


@pytest.mark.parametrize(
    "rows, width, megabytes",
    [
        # The whole matrix would take 1 GB, and dense training some six times that.
        pytest.param(16384, 32, 100, id="a process that could not hold the matrix"),
        # Memory grows with the rows: 400 MB at 32,768 rows, which benchmarks/nce.py measures.
        pytest.param(16384, 512, 250, id="16384 x 512", marks=pytest.mark.slow),
    ],
)
def test_forward_and_backward_take_gradients_and_a_few_tiles_of_memory(rows, width, megabytes):
    script = f"""
import torch
from pretrain.objectives.nce import nce

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024 / 1e6

def step(rows):
    p, q = (torch.randn(rows, {width}, requires_grad=True) for _ in range(2))
    before = status("VmRSS")
    nce(p, q, 0.07).backward()
    return status("VmHWM") - before

step(8)
print(step({rows}))
"""
    finished = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert finished.returncode == 0, finished.stderr
    assert float(finished.stdout) < megabytes
