"""InfoNCE against a sample of the rows, and the sums over negatives that it uses."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.objectives.nce import nce
from pretrain.objectives.negatives import cross_entropy, log_sum
from pretrain.objectives.sampled import sampled_nce
from pretrain.objectives.tiles import spans

TILE = next(spans(1 << 20, torch.device("cpu"))).stop


def brute_force(p, q, temperature, chosen, ids=None):
    """The definition, row by row."""
    p, q = F.normalize(p, dim=1), F.normalize(q, dim=1)
    total = 0
    for left, right in ((p, q), (q, p)):
        for row in range(len(p)):
            columns = [row]
            for column in chosen.tolist():
                is_duplicate = ids is not None and (ids[column] == ids[row]).any()
                if column != row and not is_duplicate:
                    columns.append(column)
            similarities = left[row] @ right[columns].T / temperature
            total = total - similarities.log_softmax(0)[0]
    return total / len(p)


def gradients(loss, *leaves, **options):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    value = loss(*leaves, **options)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 12),
    data=st.data(),
    temperature=st.sampled_from([0.001, 0.03, 1.0]),
    distinct_ids=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 2**31),
)
def test_sampled_nce_has_value_and_gradients_of_a_loop_over_rows(
    rows, data, temperature, distinct_ids, seed
):
    drawn = data.draw(st.lists(st.integers(0, rows - 1), unique=True))
    chosen = torch.tensor(drawn, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(rows, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    ids = None
    if distinct_ids is not None:
        ids = torch.randint(distinct_ids, (rows, 2), generator=generator)
    scale = torch.tensor(temperature, dtype=torch.float64)
    ours = gradients(sampled_nce, p, q, scale, chosen=chosen, ids=ids)
    reference = gradients(brute_force, p, q, scale, chosen=chosen, ids=ids)
    for value, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", [9, TILE + 3])
def test_sampled_nce_with_every_row_chosen_is_nce(rows):
    p, q = torch.randn(rows, 4).double(), torch.randn(rows, 4).double()
    scale, ids = torch.tensor(0.07).double(), torch.randint(rows, (rows, 2))
    whole = gradients(nce, p, q, scale, ids=ids)
    sampled = gradients(sampled_nce, p, q, scale, chosen=torch.arange(rows), ids=ids)
    for value, other in zip(sampled, whole, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-12)


def test_sampled_nce_without_a_chosen_row_is_zero():
    p, q, nothing = torch.randn(4, 8), torch.randn(4, 8), torch.zeros(0, dtype=torch.int64)
    results = gradients(sampled_nce, p, q, torch.tensor(0.1), chosen=nothing)
    value, to_p, to_q, to_scale = results
    assert value == 0 and to_p.abs().max() == 0 and to_q.abs().max() == 0 and to_scale == 0


def test_sampled_nce_without_rows_is_zero_and_has_a_gradient():
    p = torch.randn(0, 8, requires_grad=True)
    loss = sampled_nce(p, torch.randn(0, 8), 0.1, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and p.grad.shape == (0, 8)


def test_sampled_nce_is_float32_inside_autocast():
    torch.manual_seed(0)
    p, q, chosen = torch.randn(16, 64), torch.randn(16, 64), torch.arange(0, 16, 3)
    scale = torch.tensor(0.03).double()
    exact = gradients(sampled_nce, p.double(), q.double(), scale, chosen=chosen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = gradients(sampled_nce, p, q, torch.tensor(0.03), chosen=chosen)
    for value, other in zip(ours, exact, strict=True):
        assert (
            value.dtype == torch.float32 and (value - other).abs().max() < 1e-5 * other.abs().max()
        )


def test_sampled_sides_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="as many rows"):
        sampled_nce(torch.randn(5, 8), torch.randn(4, 8), 0.1, torch.tensor([0]))


@pytest.mark.parametrize("rows, columns", [(3, 5), (TILE + 1, 2 * TILE + 1), (2, 0)])
def test_sums_over_negatives_are_those_of_the_whole_matrix(rows, columns):
    left, right = torch.randn(rows, 3).double(), torch.randn(columns, 3).double()
    row_ids, column_ids = torch.randint(4, (rows, 2)), torch.randint(4, (columns, 2))
    excluded = (row_ids[:, None] == column_ids[None]).any(-1)

    def whole(left, right):
        return (left @ right.T).masked_fill(excluded, -torch.inf).logsumexp(1)

    def in_tiles(left, right):
        return log_sum(left, right, row_ids, column_ids)

    # Rows without a negative have a sum of -inf.
    seen = ~excluded.all(1)
    torch.testing.assert_close(in_tiles(left, right)[seen], whole(left, right)[seen])

    # Gradients through the cross-entropy, which is finite where no negative is left.
    def ours_loss(left, right):
        return cross_entropy(left.sum(1), in_tiles(left, right)).sum()

    def whole_loss(left, right):
        return cross_entropy(left.sum(1), whole(left, right))[seen].sum()

    ours, expected = gradients(ours_loss, left, right), gradients(whole_loss, left, right)
    for value, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(value, other)


def test_sums_over_negatives_pass_gradcheck():
    left = torch.randn(3, 2).double().requires_grad_()
    right = torch.randn(4, 2).double().requires_grad_()
    ids = torch.arange(3)[:, None], torch.tensor([[0], [1], [5], [6]])
    assert torch.autograd.gradcheck(lambda *sides: log_sum(*sides, *ids), (left, right))
