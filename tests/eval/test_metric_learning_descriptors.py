"""Heads that describe images by global and local features: DOLG, ViTGaL and part pooling."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import UsageError
from eval.stages.metric_learning.heads.atrous import MultiAtrous
from eval.stages.metric_learning.heads.dolg import DOLGHead, orthogonal_complement
from eval.stages.metric_learning.heads.parts import PartHead, part_descriptor, part_features
from eval.stages.metric_learning.heads.vitgal import AtrousBlock, ClassAttentionPool, ViTGaLHead

DIM = 32
SEEDS = pytest.mark.parametrize("seed", range(3))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), patches=st.integers(1, 20), scale=st.floats(-100, 100))
def test_the_rest_of_local_features_is_orthogonal_to_the_global_one(seed, patches, scale):
    local, global_ = randn(seed, 3, patches, DIM), randn(seed + 1, 3, DIM)
    left = orthogonal_complement(local, global_)
    assert (left @ F.normalize(global_, dim=1)[:, :, None]).abs().max() < 1e-5
    moved = orthogonal_complement(local + scale * global_[:, None], global_)
    torch.testing.assert_close(moved, left, rtol=0, atol=1e-6 * (10 + abs(scale)) * DIM)


def test_a_global_feature_of_zeros_removes_nothing():
    local, global_ = randn(0, 2, 5, DIM), torch.zeros(2, DIM, requires_grad=True)
    left = orthogonal_complement(local, global_)
    assert torch.equal(left, local)
    left.sum().backward()
    assert global_.grad.isfinite().all()


def planted(seed, places=16, shown=3):
    """Make images of 8 global kinds x 8 local details, each kind with each.

    A detail is in one patch of 16. How much of the global direction the patches hold is random.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0]
    label = torch.arange(64).repeat_interleave(shown)
    kind, detail = directions[label // 8], directions[8 + label % 8]
    local = 4 * torch.randn(len(label), 1, 1, generator=generator) * kind[:, None]
    local = local + 0.05 * torch.randn(len(label), places, DIM, generator=generator)
    local[torch.arange(len(label)), torch.randint(places, (len(label),), generator=generator)] += (
        2 * detail
    )
    return kind, local, label


def recall_at_1(features, labels):
    features = F.normalize(features, dim=1)
    similarity = (features @ features.T).fill_diagonal_(-2)
    return 100 * (labels[similarity.argmax(dim=1)] == labels).float().mean().item()


@SEEDS
def test_a_planted_detail_is_found_with_the_fused_descriptor_alone(seed):
    global_, local, label = planted(seed)
    seen, added = local.mean(dim=1), orthogonal_complement(local, global_).mean(dim=1)
    result = {"global": global_, "local": seen, "added": added}
    for name, part in (("beside", seen), ("fused", added)):
        result[name] = torch.cat([F.normalize(global_, dim=1), F.normalize(part, dim=1)], dim=1)
    recalls = {name: recall_at_1(features, label) for name, features in result.items()}
    assert recalls.pop("fused") >= 95
    assert max(recalls.values()) <= 70, recalls


@pytest.mark.parametrize("dilation", [0, 1, 3, 6, 9, 12])
def test_each_branch_sees_as_far_as_its_dilation(dilation):
    branches = MultiAtrous(2, 12, (dilation, 1)).branches
    impulse = torch.zeros(1, 2, 31, 31)
    impulse[..., 15, 15] = 1
    with torch.no_grad():
        response = (
            (branches[0](impulse) - branches[0](torch.zeros_like(impulse))).abs().amax((0, 1))
        )
    rows, columns = response.nonzero().unbind(1)
    for places in (rows, columns):
        assert places.max() - places.min() + 1 == 2 * dilation + 1
    assert len(rows) == (9 if dilation else 1)


def test_branches_divide_the_channels_and_the_pooled_one_sees_everything():
    atrous = MultiAtrous(4, 20, (1, 3))
    patches = randn(0, 1, 4, 9, 9)
    moved = patches.clone()
    moved[..., 0, 0] += 1
    with torch.no_grad():
        before, after = atrous(patches), atrous(moved)
    assert before.shape == (1, 20, 9, 9)
    assert (
        torch.equal(before[:, :12, 8, 8], after[:, :12, 8, 8])
        and (before != after)[:, 12:, 8, 8].all()
    )


def test_the_atrous_block_is_the_identity_at_layer_scale_0():
    block = AtrousBlock(DIM, (1, 3))
    tokens = randn(0, 2, 1 + 20, DIM)
    assert not torch.equal(block(tokens, (4, 5)), tokens)
    torch.nn.init.zeros_(block.scale_mixed)
    torch.nn.init.zeros_(block.scale_each)
    assert torch.equal(block(tokens, (4, 5)), tokens)


@SEEDS
def test_class_attention_weighs_all_tokens_and_its_weights_sum_to_one(seed):
    torch.manual_seed(seed)
    pool = ClassAttentionPool(DIM, 4)
    token, weights = pool(randn(seed, 3, 11, DIM))
    assert token.shape == (3, DIM) and weights.shape == (3, 11) and (weights > 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))


def heads():
    return [
        DOLGHead(DIM, 1, 2, out=24, inner=20),
        ViTGaLHead(DIM, 2, out=24),
        PartHead(DIM, 2, parts=2, each=8),
    ]


@pytest.mark.parametrize("grid", [(4, 4), (1, 1), (3, 7)])
@pytest.mark.parametrize("number", range(3))
def test_every_head_gives_unit_descriptors_and_shares_of_patches(number, grid):
    torch.manual_seed(0)
    head = heads()[number]
    if number == 2 and grid == (1, 1):
        head = PartHead(DIM, 2, parts=1, each=12)
    patches = grid[0] * grid[1]
    layers = {layer: randn(layer, 5, 1 + patches, DIM) for layer in (1, 2, 3)}
    result = head(layers, grid)
    assert set(head.layers) <= set(layers) and result.embedding.shape == (5, 24)
    torch.testing.assert_close(result.embedding.norm(dim=1), torch.ones(5))
    for layer, weights in result.weights.items():
        assert layer in head.layers and weights.shape == (5, patches)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(5))
    result.embedding[:, 0].sum().backward()
    for parameter in head.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all()


@pytest.mark.parametrize("number", range(3))
def test_a_descriptor_depends_on_its_own_image_alone(number):
    head = heads()[number]
    tokens = randn(0, 6, 17, DIM)
    with torch.no_grad():
        together = head({1: tokens, 2: tokens}, (4, 4)).embedding
        alone = head({1: tokens[:1], 2: tokens[:1]}, (4, 4)).embedding
    torch.testing.assert_close(together[:1], alone)


def test_parts_are_the_class_token_and_bands_of_rows():
    tokens = randn(0, 2, 1 + 6 * 3, DIM)
    result = part_features(tokens, (6, 3), 3)
    assert result.shape == (2, 4, DIM)
    torch.testing.assert_close(result[:, 0], tokens[:, 0])
    torch.testing.assert_close(result[:, 2], tokens[:, 1 + 6 : 1 + 12].mean(dim=1))
    torch.testing.assert_close(part_features(tokens, (6, 3), 1)[:, 1], tokens[:, 1:].mean(dim=1))


def test_the_cosine_of_part_descriptors_is_the_mean_of_their_parts():
    tokens = randn(0, 2, 1 + 12, DIM)
    first, second = part_descriptor(tokens.half(), (4, 3), 2)
    parts = F.normalize(part_features(tokens.half().float(), (4, 3), 2), dim=2)
    torch.testing.assert_close(first @ second, (parts[0] * parts[1]).sum(dim=1).mean())


@SEEDS
def test_part_descriptors_distinguish_people_who_differ_in_one_band(seed):
    """Identities are three bands of two kinds each; several have the same mean over bands."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(2, DIM, generator=generator)
    bands = torch.cartesian_prod(*[torch.arange(2)] * 3)  # (8, 3)
    label = torch.arange(8).repeat_interleave(6)
    patches = kinds[bands[label]].repeat_interleave(8, dim=1)  # 6 rows of 4
    patches = patches + 0.8 * torch.randn(patches.shape, generator=generator)
    tokens = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)
    assert recall_at_1(part_descriptor(tokens, (6, 4), 3), label) >= 95
    assert recall_at_1(tokens[:, 0], label) <= 60


@pytest.mark.parametrize("parts", [0, 5])
def test_parts_that_do_not_fit_the_grid_are_refused(parts):
    with pytest.raises(
        UsageError, match=f"4 rows of patches cannot be divided into {parts} parts: choose 1 to 4"
    ):
        part_descriptor(randn(0, 2, 1 + 12, DIM), (4, 3), parts)
