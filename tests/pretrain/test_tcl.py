"""TCL's two optional terms: known values, masks, and which side learns."""

import math

import pytest
import torch
import torch.nn.functional as F

from pretrain.objectives.tcl import global_local_gap, global_local_loss, intra_modal_loss


def brute_force(global_features, local, mask, temperature):
    global_features, local = F.normalize(global_features, dim=-1), F.normalize(local, dim=-1)
    losses = []
    for i in range(len(local)):
        others = [
            local[j, n]
            for j in range(len(local))
            for n in range(local.shape[1])
            if j != i and mask[j, n]
        ]
        negatives = sum(torch.exp(global_features[i] @ other / temperature) for other in others)
        for m in range(local.shape[1]):
            if mask[i, m]:
                positive = torch.exp(global_features[i] @ local[i, m] / temperature)
                losses.append(-torch.log(positive / (positive + negatives)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("samples, tokens", [(2, 1), (5, 3), (40, 60)])
def test_global_local_loss_of_equal_vectors_is_the_logarithm_of_all_candidates(samples, tokens):
    vector = torch.randn(1, 8)
    loss = global_local_loss(
        vector.repeat(samples, 1),
        vector.repeat(samples, tokens, 1),
        torch.ones(samples, tokens),
        0.07,
    )
    assert loss.item() == pytest.approx(math.log(1 + (samples - 1) * tokens), rel=1e-6)


def test_global_local_loss_and_gradient_equal_a_loop():
    torch.manual_seed(0)
    vector = torch.randn(4, 6).double()
    vectors = [vector.clone().requires_grad_() for _ in range(2)]
    local, mask = (
        torch.randn(4, 5, 6).double(),
        torch.arange(5) < torch.tensor([[5], [2], [1], [3]]),
    )
    losses = [
        global_local_loss(vectors[0], local, mask, 0.07),
        brute_force(vectors[1], local, mask, 0.07),
    ]
    torch.stack(losses).sum().backward()
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(vectors[0].grad, vectors[1].grad)


def test_only_the_global_vector_and_the_temperature_learn():
    vector, local = torch.randn(4, 6, requires_grad=True), torch.randn(4, 5, 6, requires_grad=True)
    temperature = torch.tensor(0.07, requires_grad=True)
    global_local_loss(vector, local, torch.ones(4, 5), temperature).backward()
    assert (
        local.grad is None and vector.grad.abs().min(1).values.max() > 0 and temperature.grad != 0
    )


def test_masked_tokens_weigh_nothing():
    vector, local = torch.randn(4, 6, requires_grad=True), torch.randn(4, 5, 6)
    mask = torch.ones(4, 5)
    mask[1, 2:] = 0
    disturbed = local.clone()
    disturbed[1, 2:] = 100 * torch.randn(3, 6)
    losses = [global_local_loss(vector, tokens, mask, 0.07) for tokens in (local, disturbed)]
    first, second = (torch.autograd.grad(loss, vector)[0] for loss in losses)
    assert torch.equal(*losses) and torch.equal(first, second)
    mask[1] = 0  # a sample without a token
    assert global_local_loss(vector, local, mask, 0.07).isfinite()


@pytest.mark.parametrize("seed", range(4))
def test_a_planted_local_raises_the_gap_steadily(seed):
    torch.manual_seed(seed)
    vector, noise = torch.randn(8, 16), torch.randn(8, 4, 16)
    gaps = []
    for strength in (0.0, 0.5, 1.0, 2.0, 4.0):
        local = noise.clone()
        local[:, 1] += strength * vector
        gaps.append(global_local_gap(vector, local, torch.ones(8, 4), 0.3).item())
    assert gaps == sorted(gaps) and gaps[-1] > gaps[0] + 0.1


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_of_the_locals_beats_a_shuffled_one(seed):
    torch.manual_seed(seed)
    local = torch.randn(8, 4, 16) + torch.randn(8, 1, 16)
    right, wrong = local.mean(1), local.mean(1).roll(1, 0)
    gaps = [global_local_gap(vector, local, torch.ones(8, 4), 0.07) for vector in (right, wrong)]
    assert gaps[0] > 0 > gaps[1] and gaps[0] > gaps[1] + 1


@pytest.mark.parametrize("lengths", [[5, 5, 5, 5], [5, 2, 1, 3]])
def test_the_gap_of_equal_vectors_is_0_and_padding_changes_none(lengths):
    vector, local = torch.randn(1, 6), torch.randn(4, 5, 6)
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
    equal = global_local_gap(vector.repeat(4, 1), vector.repeat(4, 5, 1), mask, 0.07)
    assert equal == pytest.approx(0, abs=1e-5)
    disturbed = torch.where(mask[..., None] == 1, local, 100 * torch.randn(4, 5, 6))
    gaps = [
        global_local_gap(vector.repeat(4, 1), tokens, mask, 0.07) for tokens in (local, disturbed)
    ]
    assert torch.equal(*gaps)


def test_the_gap_is_the_bound_less_the_loss_and_teaches_nothing():
    vector, local = torch.randn(4, 6, requires_grad=True), torch.randn(4, 5, 6)
    gap = global_local_gap(vector, local, torch.ones(4, 5), 0.07)
    expected = math.log(1 + 3 * 5) - brute_force(vector, local, torch.ones(4, 5), 0.07).item()
    assert gap.item() == pytest.approx(expected, rel=1e-4, abs=1e-5) and not gap.requires_grad


def test_a_single_sample_has_no_negatives():
    vector = torch.randn(1, 6, requires_grad=True)
    loss = global_local_loss(vector, torch.randn(1, 5, 6), torch.ones(1, 5), 0.07)
    loss.backward()
    assert loss == 0 and vector.grad.abs().max() == 0


def test_locals_of_duplicates_are_no_negatives():
    vector, local = torch.randn(1, 6).repeat(2, 1), torch.randn(1, 5, 6).repeat(2, 1, 1)
    ids = torch.tensor([[3, 0], [3, 1]])
    assert global_local_loss(vector, local, torch.ones(2, 5), 0.07) > 0.5
    assert global_local_loss(vector, local, torch.ones(2, 5), 0.07, ids=ids) == 0


def test_global_local_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="shapes"):
        global_local_loss(torch.randn(3, 6), torch.randn(4, 5, 6), torch.ones(4, 5), 0.07)


def test_intra_modal_loss_is_the_mean_of_both_directions():
    first, second = torch.randn(5, 6), torch.randn(5, 6)
    similarity = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / 0.07
    own = torch.arange(5)
    expected = (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2
    torch.testing.assert_close(intra_modal_loss(first, second, 0.07), expected)


def test_both_views_of_a_modality_learn_and_duplicates_are_no_negatives():
    first, second = (torch.randn(4, 6, requires_grad=True) for _ in range(2))
    intra_modal_loss(first, second, 0.07).backward()
    assert first.grad.abs().sum() > 0 and second.grad.abs().sum() > 0
    assert intra_modal_loss(first, second, 0.07, torch.zeros(4, 1, dtype=torch.int64)) == 0
