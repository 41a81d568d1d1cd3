"""Patches that a label's loss depends on, in worlds where the patches of each label are known.

An image has 49 patches of noise. Four patches show each of its one to three labels. Texts are
random, and the look of a label is a blurred linear map of its text. The joint space is learned from
base labels; everything else is measured on new ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.results.intervals import t_interval
from eval.stages.multi_label.cross_interaction import CrossInteraction, DynamicConv
from eval.stages.multi_label.joint_space import JointSpace, Labelled, Logistic, fit_joint
from eval.stages.multi_label.loss_change import joint_logits, loss_change, select_local
from eval.stages.multi_label.methods import Methods, Prepared
from eval.stages.multi_label.metrics import multilabel_metrics
from eval.stages.multi_label.model import MLFSIC
from eval.stages.multi_label.sampler import MultiLabelEpisodeSampler
from eval.stages.multi_label.training import TrainSettings, fit_base, validate

PATCHES, PLANTED, WIDTH, TEXT = 49, 4, 64, 48
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class World:
    space: JointSpace
    base: Labelled
    novel: Labelled
    planted: Tensor  # patches that show a label in the novel images (images, labels, patches)

    @property
    def labels(self) -> Tensor:
        with torch.no_grad():
            return self.space.text(self.novel.text)


def make_images(
    looks: Tensor, count: int, noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches, truth (images, labels), and which patch shows a label."""
    labels = len(looks)
    patch = noise * torch.randn(count, PATCHES, WIDTH, generator=generator)
    planted = torch.zeros(count, labels, PATCHES, dtype=torch.bool)
    for row in range(count):
        order = torch.randperm(labels, generator=generator)
        shown = order[: int(torch.randint(1, 4, (), generator=generator))]
        places = torch.randperm(PATCHES, generator=generator)[: len(shown) * PLANTED]
        for label, places_of_label in zip(shown, places.view(-1, PLANTED), strict=True):
            patch[row, places_of_label] += looks[label]
            planted[row, label, places_of_label] = True
    return patch, planted.any(-1), planted


def make_world(seed: int, *, novel: int, blur: float, noise: float) -> World:
    generator = torch.Generator().manual_seed(seed)
    text = F.normalize(torch.randn(96 + novel, TEXT, generator=generator), dim=-1)
    looks = F.normalize(text @ torch.randn(TEXT, WIDTH, generator=generator), dim=-1)
    looks = looks + blur * F.normalize(torch.randn(looks.shape, generator=generator), dim=-1)
    looks = F.normalize(looks, dim=-1) * WIDTH**0.5

    def labelled(which: slice, count: int) -> tuple[Labelled, Tensor]:
        patch, truth, planted = make_images(looks[which], count, noise, generator)
        names = [f"label {number}" for number in range(len(text))[which]]
        keys = [f"{which.start}/{number}" for number in range(count)]
        proj = torch.zeros(count, 1)
        return Labelled(tuple(names), keys, keys, patch, proj, truth.numpy(), text[which]), planted

    base, _ = labelled(slice(0, 96), 1500)
    new, planted = labelled(slice(96, 96 + novel), 400)
    space = JointSpace.learned(WIDTH, TEXT, WIDTH, seed=seed)
    fit_joint(space, base, epochs=30, seed=seed)
    return World(space, base, new, planted)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=SEEDS)
def world(request: pytest.FixtureRequest) -> World:
    """A clear world: texts nearly say what labels look like."""
    return make_world(request.param, novel=12, blur=0.3, noise=1.0)


@pytest.fixture(scope="module", params=SEEDS)
def blurred_world(request: pytest.FixtureRequest) -> World:
    return make_world(request.param, novel=16, blur=1.0, noise=1.5)


def scores(world: World, **options: object) -> Tensor:
    """Return loss changes in the first 100 new images."""
    present = world.novel.present(slice(100))
    return loss_change(
        world.novel.patch[:100], present, world.labels, world.space.vision, **options
    )


def precision(score: Tensor, planted: Tensor) -> float:
    """Return the share of planted patches among the same number of highest scores."""
    count = planted.sum(-1)
    order = score.expand(planted.shape).argsort(-1, descending=True)
    hits_so_far = planted.gather(-1, order).cumsum(-1)
    hits = hits_so_far.gather(-1, (count - 1).clamp_min(0)[..., None])[..., 0]
    return (hits[count > 0] / count[count > 0]).mean().item()


def test_first_order_scores_correlate_with_exact_removal(world: World) -> None:
    present = world.novel.present(slice(100)).bool()
    by_label = [scores(world, mode=mode)[present] for mode in ("taylor", "exact")]
    by_image = [scores(world, mode=mode, scope="image") for mode in ("taylor", "exact")]
    for pair in (by_label, by_image):
        assert np.corrcoef(*(score.flatten().numpy() for score in pair))[0, 1] >= 0.9


def test_ranking_ignores_the_scale_of_the_loss_and_the_published_threshold_does_not(
    world: World,
) -> None:
    score = scores(world, scope="image", mode="ema", steps=5)
    small = score * 1e-3
    assert (select_local(score, k=4) == select_local(small, k=4)).all()
    assert select_local(score, rule="tau").all()  # it keeps every patch
    smaller = score * 1e-9 / score.median()
    assert (select_local(score, rule="tau") != select_local(smaller, rule="tau")).any()


def test_label_scope_finds_the_patches_of_a_given_label_and_image_scope_does_not(
    world: World,
) -> None:
    planted = world.planted[:100]
    of_label = {mode: precision(scores(world, mode=mode), planted) for mode in ("taylor", "exact")}
    of_image = precision(scores(world, scope="image")[:, None], planted)
    source = precision(scores(world, scope="image", mode="ema")[:, None], planted)
    assert min(of_label.values()) >= 0.9
    assert of_label["taylor"] >= of_image + 0.3 and of_label["taylor"] >= source + 0.3


def test_patches_of_a_label_that_is_annotated_as_absent_score_below_zero(
    world: World,
) -> None:
    present = world.novel.present(slice(100))
    first = present.argmax(1)
    present[torch.arange(100), first] = 0  # shown, but annotated as absent
    hidden = world.planted[torch.arange(100), first]
    for scope in ("label", "image"):
        score = loss_change(
            world.novel.patch[:100], present, world.labels, world.space.vision, scope=scope
        )
        if scope == "label":
            score = score[torch.arange(100), first]
        assert score[hidden].mean() < 0 and (score[hidden] < 0).float().mean() > 0.9
        assert score[hidden].mean() < score[~hidden].mean()


def draws_of(world: World, shot: int, draws: int = 20) -> dict[str, list[float]]:
    model = MLFSIC(world.space).eval()
    prepared, methods = Prepared.of(model, world.novel), Methods(model, {}, k=PLANTED, seed=0)
    names = ["lcm", "text_similarity", "random_patch", "all_patch", "text_proto"]
    sampler = MultiLabelEpisodeSampler(
        world.novel.truth, world.novel.names, shot=shot, draws=draws, seed=0
    )
    precision: dict[str, list[float]] = {name: [] for name in names}
    for number, draw in enumerate(sampler.all()):
        truth = world.novel.truth[draw.query]
        scored = methods.scores(names, prepared, draw, shot=shot, number=number)
        for name, of_method in scored.items():
            values, _ = multilabel_metrics(of_method.scores.double().numpy(), truth, None)
            precision[name].append(100 * values["mAP"])
    return precision


def test_chosen_patches_beat_the_text_which_beats_all_patches_which_beat_random_ones(
    blurred_world: World,
) -> None:
    precision = draws_of(blurred_world, shot=1)
    names = ("lcm", "text_proto", "all_patch", "random_patch")
    intervals = [t_interval(precision[name]) for name in names]
    for higher, lower in zip(intervals, intervals[1:], strict=False):
        assert higher is not None and lower is not None and higher[0] > lower[1]


def test_more_support_helps_and_choosing_by_text_similarity_is_as_good_here(
    blurred_world: World,
) -> None:
    one_shot, five_shot = (draws_of(blurred_world, shot, draws=5) for shot in (1, 5))
    assert np.mean(five_shot["lcm"]) > np.mean(one_shot["lcm"]) + 3
    # Text similarity is as good here: a result must always show it beside the method.
    assert abs(np.mean(five_shot["lcm"]) - np.mean(five_shot["text_similarity"])) < 3


def test_loss_changes_are_measured_under_no_grad_and_leave_no_gradient(world: World) -> None:
    world.space.zero_grad()
    with torch.no_grad():
        inside = scores(world)
    assert (inside == scores(world)).all() and not inside.requires_grad
    assert all(weight.grad is None for weight in world.space.parameters())


def test_scores_of_an_image_do_not_depend_on_other_images_in_the_batch(world: World) -> None:
    patch, present = world.novel.patch[:8], world.novel.present(slice(8))
    for options in ({"mode": "taylor"}, {"mode": "exact"}, {"mode": "taylor", "scope": "image"}):
        together = loss_change(patch, present, world.labels, world.space.vision, **options)
        alone = []
        for row in range(8):
            image, truth = patch[row : row + 1], present[row : row + 1]
            alone.append(loss_change(image, truth, world.labels, world.space.vision, **options))
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-6)


def test_exact_scores_are_the_losses_with_and_without_a_patch() -> None:
    generator = torch.Generator().manual_seed(0)
    local = torch.randn(2, 5, 6, generator=generator)
    labels = torch.randn(3, 6, generator=generator)
    present = torch.tensor([[1.0, 0, 1], [0, 1, 0]])

    def loss(patches: Tensor) -> Tensor:
        logits = joint_logits(patches.mean(1), labels, 7, 0.5)
        return F.binary_cross_entropy_with_logits(logits, present, reduction="none")

    score = loss_change(local, present, labels, mode="exact", scale=7, bias=0.5)
    for patch in range(5):
        without = local.clone()
        without[:, patch] = 0
        torch.testing.assert_close(score[:, :, patch], loss(without) - loss(local))


def test_joint_logits_go_from_scale_to_minus_scale_with_the_distance() -> None:
    a = torch.tensor([[2.0, 0], [0, 3]])
    orthogonal = 20 * (1 - 2**0.5)
    expected = torch.tensor([[20, orthogonal, -20], [orthogonal, 20, orthogonal]])
    logits = joint_logits(a, torch.tensor([[1.0, 0], [0, 1], [-5, 0]]))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_selection_keeps_the_first_of_equal_scores_and_a_share_rounded_up() -> None:
    score = torch.tensor([[1.0, 3, 3, 3, 0]])
    assert select_local(score, k=2).tolist() == [[False, True, True, False, False]]
    assert select_local(score, k=9).all()
    assert select_local(score, rule="ratio", ratio=0.5).sum() == 3
    assert select_local(score, rule="tau", tau=1.0).tolist() == [[True, True, True, True, False]]


@pytest.mark.parametrize("extras", [True, False])
def test_a_label_without_patches_keeps_its_vector(extras: bool) -> None:
    torch.manual_seed(0)
    cross = CrossInteraction(32, heads=4, channel_attention=extras, dynamic_conv=extras).eval()
    label, local = torch.randn(3, 32), torch.randn(3, 7, 32)
    mask = torch.rand(3, 7) < 0.5
    mask[1] = False
    prototypes, attention = cross(label, local.requires_grad_(), mask)
    assert (prototypes[1] == label[1]).all() and not torch.allclose(prototypes[0], label[0])
    assert (attention[1] == 0).all() and torch.isfinite(prototypes).all()
    prototypes.sum().backward()
    assert torch.isfinite(local.grad).all()
    assert all(torch.isfinite(weight.grad).all() for weight in cross.parameters())


@pytest.mark.parametrize("extras", [True, False])
def test_masked_patches_are_ignored_exactly(extras: bool) -> None:
    torch.manual_seed(0)
    cross = CrossInteraction(
        32, heads=4, layers=2, channel_attention=extras, dynamic_conv=extras
    ).eval()
    for weight in cross.parameters():  # parts that start at zero must be masked too
        torch.nn.init.normal_(weight, std=0.3)
    label, local, mask = torch.randn(4, 32), torch.randn(4, 9, 32), torch.rand(4, 9) < 0.6
    other = torch.where(mask[..., None], local, 100 * torch.randn_like(local))
    for a, b in zip(cross(label, local, mask), cross(label, other, mask), strict=True):
        assert (a == b).all()
    conv = DynamicConv(32)
    assert (conv(label, local, mask) == conv(label, other, mask)).all()


def test_a_new_cross_interaction_predicts_like_the_mean_of_the_chosen_patches(world: World) -> None:
    torch.manual_seed(0)
    model = MLFSIC(world.space, CrossInteraction(WIDTH, heads=4)).eval()
    local, present = world.space.local(world.novel.patch), world.novel.present()
    sampler = MultiLabelEpisodeSampler(
        world.novel.truth, world.novel.names, shot=1, draws=1, seed=0
    )
    rows = sampler[0].support
    vectors = {}
    for cross in (True, False):
        with torch.no_grad():
            made = model.prototypes(local[rows], present[rows], world.labels, cross=cross)
        vectors[cross] = made.vectors
    assert F.cosine_similarity(vectors[True], vectors[False]).min() > 0.8


def test_training_keeps_the_epoch_that_is_best_on_validation_labels(world: World) -> None:
    few = np.flatnonzero(~world.base.truth[:, 16:].any(axis=1) | (np.arange(1500) % 2 == 0))
    base = world.base.subset(few, np.arange(16))
    space = JointSpace(world.space.vision, world.space.text).requires_grad_(False)
    torch.manual_seed(0)
    model = MLFSIC(space, CrossInteraction(WIDTH, heads=4))
    settings = TrainSettings(epochs=2, episodes=4, lr=1e-3, warmup=2, validation_draws=2)
    log = fit_base(model, base, world.novel, settings, seed=0)
    assert len(log.losses) == 2 and len(log.validation) == 3
    assert log.validation[log.best] == max(log.validation)
    assert log.losses[1] < log.losses[0]
    # The model has the weights of that epoch.
    assert validate(model, world.novel, 2, 0) == log.validation[log.best]


def test_training_with_the_joint_space_changes_both_and_repeats_to_the_bit() -> None:
    small = make_world(5, novel=4, blur=0.3, noise=1.0)
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        space = JointSpace.learned(WIDTH, TEXT, 32, seed=0)
        model = MLFSIC(space, CrossInteraction(32, heads=4))
        settings = TrainSettings(epochs=1, episodes=2, lr=1e-3, warmup=1)
        fit_base(model, small.base, None, settings, seed=0)
        weights.append(model.state_dict())
    start = JointSpace.learned(WIDTH, TEXT, 32, seed=0).state_dict()
    assert not torch.equal(weights[0]["space.text.weight"], start["text.weight"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_query_pools_compare_mean_best_and_attended_patches(world: World) -> None:
    local = world.space.local(world.novel.patch[:200])
    truth = world.novel.truth[:200]
    precision = {}
    for pool in ("mean", "max", "label_attention"):
        with torch.no_grad():
            logits = MLFSIC(world.space, query_pool=pool).predict(local, world.labels)
        assert logits.shape == truth.shape
        precision[pool] = multilabel_metrics(logits.double().numpy(), truth, None)[0]["mAP"]
    best = joint_logits(local[3], world.labels).amax(0)
    with torch.no_grad():
        by_max = MLFSIC(world.space, query_pool="max").predict(local, world.labels)
    torch.testing.assert_close(by_max[3], best)
    assert precision["label_attention"] > precision["mean"]


def test_scale_and_bias_are_fitted_if_scores_go_with_presence() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((400, 5)) < 0.2
    logistic = Logistic.fit(0.1 * (truth + rng.normal(size=truth.shape)) + 3, truth)
    assert logistic.fitted and logistic.scale > 0
    new_scores = 0.1 * (truth + rng.normal(size=truth.shape)) + 3
    probability = 1 / (1 + np.exp(-(logistic.scale * new_scores + logistic.bias)))
    assert probability.mean() == pytest.approx(0.2, abs=0.03)
    inverted = Logistic.fit(-truth.astype(float), truth)
    assert not inverted.fitted and inverted.scale > 0  # a ranking is never turned around


def test_a_space_is_calibrated_on_base_labels(world: World) -> None:
    space = JointSpace(world.space.vision, world.space.text, scale=3.0, bias=1.0)
    assert space.fit_scale(world.base)
    with torch.no_grad():
        logits = space.logits(space.pooled(world.base.patch), space.text(world.base.text))
    assert logits.sigmoid().mean().item() == pytest.approx(world.base.truth.mean(), rel=0.2)
    inverted = replace(world.base, truth=~world.base.truth)
    assert not space.fit_scale(inverted)
