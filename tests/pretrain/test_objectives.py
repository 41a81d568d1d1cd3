"""Objectives as functions: what they compute, what they ignore, and that their gradients go where they should."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.objectives.completion import completion_loss
from pretrain.objectives.masked_language import masked_language_loss
from pretrain.objectives.matching import choose_images


def test_completion_sends_no_gradient_into_its_target():
    recovered, target = (torch.randn(4, 8, requires_grad=True) for _ in range(2))
    completion_loss(recovered, target, 0.03).backward()
    assert recovered.grad.abs().sum() > 0 and target.grad is None


def test_masked_language_loss_of_no_token_is_zero():
    logits = torch.zeros(0, 7, requires_grad=True)
    loss = masked_language_loss(logits, torch.zeros(0, dtype=torch.int64), 0.0)
    assert loss.item() == 0 and loss.requires_grad


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.sampled_from([2, 3, 4, 8]), st.booleans(), st.integers(0, 2**31))
def test_matching_negatives_are_other_images_of_the_same_group(groups, size, hard, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(size) < size // 2] * groups).long()
    noise = torch.randn(groups * size, size, generator=generator)
    similarity = torch.randn(groups * size, groups * size, generator=generator) if hard else None
    chosen = choose_images(labels, noise, similarity)
    rows = torch.arange(groups * size)
    assert torch.equal(chosen[labels == 1], rows[labels == 1])
    assert (chosen[labels == 0] != rows[labels == 0]).all()
    assert torch.equal(chosen // size, rows // size)


def test_hard_negatives_follow_the_similarity():
    labels, noise = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 4)
    similarity = torch.tensor([[9.0, 1, 5, 2], [1, 9, 2, 5], [5, 1, 9, 2], [1, 2, 5, 9]])
    assert choose_images(labels, noise, similarity).tolist() == [2, 3, 0, 2]


@pytest.mark.parametrize("hard", [True, False])
def test_matching_choice_of_a_group_does_not_depend_on_the_batch_around_it(hard):
    labels, noise, similarity = torch.tensor([1, 0] * 4), torch.randn(8, 4), torch.randn(8, 8)
    whole = choose_images(labels, noise, similarity if hard else None)
    second = choose_images(labels[4:], noise[4:], similarity[4:, 4:] if hard else None)
    assert torch.equal(whole[4:] - 4, second)
