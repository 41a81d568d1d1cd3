"""Objectives as functions: what they compute, what they ignore, and where gradients go."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain.objectives.completion import completion_loss, sampled_completion_loss
from pretrain.objectives.contrastive import contrastive_loss
from pretrain.objectives.masked_language import masked_language_loss
from pretrain.objectives.matching import choose_images
from pretrain.objectives.nce import nce
from pretrain.objectives.sampled import sampled_nce
from pretrain.objectives.tcl import global_local_loss


def test_completion_sends_no_gradient_into_its_target():
    recovered, target = (torch.randn(4, 8, requires_grad=True) for _ in range(2))
    completion_loss(recovered, target, 0.03).backward()
    assert recovered.grad.abs().sum() > 0 and target.grad is None


def test_sampled_completion_sends_no_gradient_into_its_target():
    recovered, target = (torch.randn(4, 8, requires_grad=True) for _ in range(2))
    sampled_completion_loss(recovered, target, 0.03, torch.tensor([1, 3])).backward()
    assert recovered.grad.abs().sum() > 0 and target.grad is None


def test_completion_of_videos_contrasts_frame_with_frame():
    recovered, target = torch.randn(4, 3, 8), torch.randn(4, 3, 8)
    expected = sum(nce(recovered[:, frame], target[:, frame], 0.03) for frame in range(3)) / 3
    torch.testing.assert_close(completion_loss(recovered, target, 0.03), expected)


def test_completion_of_one_frame_is_that_of_an_image():
    recovered, target = torch.randn(4, 8), torch.randn(4, 8)
    loss = completion_loss(recovered[:, None], target[:, None], 0.03)
    torch.testing.assert_close(loss, completion_loss(recovered, target, 0.03))


def test_published_normalisation_divides_by_the_norm_over_frames_only():
    recovered, target = torch.randn(4, 3, 8), torch.randn(4, 3, 8)
    divided = [side / side.pow(2).sum(1, keepdim=True).sqrt() for side in (recovered, target)]
    expected = 0.0
    for frame in range(3):
        similarity = divided[0][:, frame] @ divided[1][:, frame].T / 0.03
        expected -= similarity.log_softmax(1).diag().mean()
        expected -= similarity.log_softmax(0).diag().mean()
    published = completion_loss(recovered, target, 0.03, normalization="frames")
    torch.testing.assert_close(published, expected / 3)
    assert (published - completion_loss(recovered, target, 0.03)).abs() > 0.1


def test_normalisation_over_frames_is_refused_for_images():
    with pytest.raises(ValueError, match="needs videos"):
        completion_loss(torch.randn(4, 8), torch.randn(4, 8), 0.03, normalization="frames")


def test_mean_of_directions_is_half_their_sum():
    recovered, target = torch.randn(4, 8), torch.randn(4, 8)
    total = completion_loss(recovered, target, 0.03, directions="sum")
    mean = completion_loss(recovered, target, 0.03, directions="mean")
    torch.testing.assert_close(2 * mean, total)
    chosen = torch.tensor([0, 2])
    total = sampled_completion_loss(recovered, target, 0.03, chosen, directions="sum")
    mean = sampled_completion_loss(recovered, target, 0.03, chosen, directions="mean")
    torch.testing.assert_close(2 * mean, total)


@pytest.mark.parametrize("loss", [completion_loss, contrastive_loss])
def test_duplicates_are_not_negatives(loss):
    torch.manual_seed(0)
    p, q = torch.randn(4, 8), torch.randn(4, 8)
    p[1], q[1] = p[0], q[0]
    twice, apart = torch.tensor([[7], [7], [1], [2]]), torch.arange(4)[:, None]
    assert loss(p, q, torch.tensor(0.1), ids=twice) < loss(p, q, torch.tensor(0.1), ids=apart) - 0.1


def test_completion_falls_to_zero_on_a_batch_that_can_be_memorised():
    torch.manual_seed(0)
    target = torch.randn(16, 32)
    recovered = torch.randn(16, 32, requires_grad=True)
    optimizer = torch.optim.Adam([recovered], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss = completion_loss(recovered, target, 0.03)
        loss.backward()
        optimizer.step()
    assert loss < 1e-3


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
    chosen, matches = choose_images(labels, noise, similarity)
    rows = torch.arange(groups * size)
    assert torch.equal(matches, labels)
    assert torch.equal(chosen[labels == 1], rows[labels == 1])
    assert (chosen[labels == 0] != rows[labels == 0]).all()
    assert torch.equal(chosen // size, rows // size)


def test_hard_negatives_follow_the_similarity():
    labels, noise = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 4)
    similarity = torch.tensor([[9.0, 1, 5, 2], [1, 9, 2, 5], [5, 1, 9, 2], [1, 2, 5, 9]])
    assert choose_images(labels, noise, similarity)[0].tolist() == [2, 3, 0, 2]


@pytest.mark.parametrize("hard", [True, False])
def test_matching_choice_of_a_group_does_not_depend_on_the_batch_around_it(hard):
    labels, noise, similarity = torch.tensor([1, 0] * 4), torch.randn(8, 4), torch.randn(8, 8)
    whole, _ = choose_images(labels, noise, similarity if hard else None)
    second, _ = choose_images(labels[4:], noise[4:], similarity[4:, 4:] if hard else None)
    assert torch.equal(whole[4:] - 4, second)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([2, 4, 8]), st.integers(1, 8), st.booleans(), st.integers(0, 2**31))
def test_matching_negatives_are_never_duplicates(size, images, hard, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (2 * size,), generator=generator)
    noise = torch.randn(2 * size, size, generator=generator)
    identity = torch.randint(images, (2 * size, 2), generator=generator)
    similarity = torch.randn(2 * size, 2 * size, generator=generator) if hard else None
    chosen, matches = choose_images(labels, noise, similarity, identity)
    rows = torch.arange(2 * size)
    duplicate = (identity[chosen] == identity).any(1)
    assert torch.equal(chosen[matches == 1], rows[matches == 1])
    assert not duplicate[matches == 0].any()
    # A text became a positive only where its group held nothing but duplicates.
    for row in rows[(matches == 1) & (labels == 0)].tolist():
        group = slice(row - row % size, row - row % size + size)
        assert (identity[group] == identity[row]).any(1).all()


def test_a_duplicate_loses_to_the_next_hardest_image():
    labels, noise = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 4)
    similarity = torch.tensor([[9.0, 1, 5, 2], [1, 9, 2, 5], [5, 1, 9, 2], [1, 2, 5, 9]])
    same_image = torch.tensor([[0, 0], [1, 1], [0, 2], [3, 3]])
    same_caption = same_image.flip(1)
    for identity in (same_image, same_caption):
        chosen, matches = choose_images(labels, noise, similarity, identity)
        assert chosen.tolist() == [3, 3, 3, 2] and matches.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("hard", [True, False])
def test_a_group_of_duplicates_keeps_its_images_and_matches(hard):
    labels, noise = torch.tensor([1, 0, 0, 1]), torch.randn(4, 2)
    identity = torch.tensor([[5, 0], [5, 1], [6, 2], [7, 3]])
    chosen, matches = choose_images(labels, noise, torch.randn(4, 4) if hard else None, identity)
    assert chosen.tolist() == [0, 1, 3, 3] and matches.tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize("name", ["nce", "nce with ids", "sampled", "global_local", "matching"])
def test_losses_never_read_a_value_on_the_host(name):
    # Fake tensors have no values: reading one raises an error.
    with FakeTensorMode():
        p, q = torch.randn(6, 8).requires_grad_(), torch.randn(6, 8).requires_grad_()
        ids = torch.zeros(6, 2, dtype=torch.int64)
        temperature = torch.tensor(0.1).requires_grad_()
        if name == "nce":
            loss = nce(p, q, temperature)
        elif name == "nce with ids":
            loss = nce(p, q, temperature, ids=ids)
        elif name == "sampled":
            loss = sampled_nce(p, q, temperature, ids[:2, 0], ids=ids)
        elif name == "global_local":
            local, mask = torch.randn(6, 5, 8), torch.ones(6, 5)
            loss = global_local_loss(p, local, mask, temperature, ids=ids)
        else:
            rows, _ = choose_images(ids[:, 0], torch.randn(6, 3), p @ q.T, ids)
            loss = p[rows].sum()
        loss.backward()
        assert p.grad.shape == (6, 8)
        with pytest.raises(RuntimeError):
            loss.item()
