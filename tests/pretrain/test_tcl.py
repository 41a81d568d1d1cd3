"""The two optional terms of TCL: known values, masks, and which side learns."""

import math

import pytest
import torch
import torch.nn.functional as F

from pretrain.objectives.tcl import global_local_loss, intra_modal_loss


def brute_force(global_features, local, mask, temperature):
    """The definition, term by term."""
    global_features, local = F.normalize(global_features, dim=-1), F.normalize(local, dim=-1)
    losses = []
    for i in range(len(local)):
        similarities = torch.exp(global_features[i] @ local.transpose(1, 2) / temperature)
        is_other = torch.arange(len(local))[:, None] != i
        negatives = similarities[mask.bool() & is_other].sum()
        for positive in similarities[i, mask[i].bool()]:
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
    local = torch.randn(4, 5, 6).double()
    mask = torch.arange(5) < torch.tensor([[5], [2], [1], [3]])
    values, gradients = [], []
    for loss in (global_local_loss, brute_force):
        leaf = vector.clone().requires_grad_()
        values.append(loss(leaf, local, mask, 0.07))
        gradients.append(torch.autograd.grad(values[-1], leaf)[0])
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_only_the_global_vector_and_the_temperature_learn():
    vector, local = torch.randn(4, 6, requires_grad=True), torch.randn(4, 5, 6, requires_grad=True)
    temperature = torch.tensor(0.07, requires_grad=True)
    global_local_loss(vector, local, torch.ones(4, 5), temperature).backward()
    assert local.grad is None and temperature.grad != 0
    assert vector.grad.abs().min(1).values.max() > 0


def test_masked_tokens_have_no_weight():
    vector, local = torch.randn(4, 6, requires_grad=True), torch.randn(4, 5, 6)
    mask = torch.ones(4, 5)
    mask[1, 2:] = 0
    disturbed = local.clone()
    disturbed[1, 2:] = 100 * torch.randn(3, 6)
    values, gradients = [], []
    for tokens in (local, disturbed):
        values.append(global_local_loss(vector, tokens, mask, 0.07))
        gradients.append(torch.autograd.grad(values[-1], vector)[0])
    assert torch.equal(*values) and torch.equal(*gradients)
    mask[1] = 0  # a sample without a token
    assert global_local_loss(vector, local, mask, 0.07).isfinite()


def test_a_single_sample_has_no_negatives():
    vector = torch.randn(1, 6, requires_grad=True)
    loss = global_local_loss(vector, torch.randn(1, 5, 6), torch.ones(1, 5), 0.07)
    loss.backward()
    assert loss == 0 and vector.grad.abs().max() == 0


def test_locals_of_duplicates_are_not_negatives():
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
    matches = torch.arange(5)
    both = F.cross_entropy(similarity, matches) + F.cross_entropy(similarity.T, matches)
    expected = both / 2
    torch.testing.assert_close(intra_modal_loss(first, second, 0.07), expected)


def test_both_views_of_a_modality_learn_and_duplicates_are_not_negatives():
    first, second = (torch.randn(4, 6, requires_grad=True) for _ in range(2))
    intra_modal_loss(first, second, 0.07).backward()
    assert first.grad.abs().sum() > 0 and second.grad.abs().sum() > 0
    assert intra_modal_loss(first, second, 0.07, torch.zeros(4, 1, dtype=torch.int64)) == 0
