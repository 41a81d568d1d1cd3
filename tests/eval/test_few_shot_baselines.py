"""Baselines compute the published formulas, and choose settings on validation classes alone."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from data_pipeline.errors import NumericsError, UsageError
from eval.encoding.labelled_images import ImageTokens
from eval.stages.few_shot.baselines import (
    LinearProbe,
    Method,
    NearestNeighbour,
    Proto,
    SimpleShot,
    TipAdapter,
    ZeroShot,
)
from eval.stages.few_shot.episode_tokens import EpisodeTokens
from eval.stages.few_shot.episodes import EpisodeSampler
from eval.stages.few_shot.gliml import GLIMLHead
from eval.stages.few_shot.inference import World, accuracy, best_on_validation, classify, cost
from eval.stages.few_shot.methods import METHODS, usable

WIDTH, CLASSES, EACH = 8, 6, 12
ALL: list[Method] = [
    ZeroShot(),
    NearestNeighbour(),
    Proto(),
    SimpleShot(),
    SimpleShot(torch.ones(WIDTH)),
    TipAdapter(2.0, 5.5),
    LinearProbe(1e-3, 5),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tokens_of(number: int, *leading: int, seed: int = 0) -> EpisodeTokens:
    rng = torch.Generator().manual_seed(seed)
    cls = torch.randn(*leading, number, WIDTH, generator=rng)
    patch = torch.randn(*leading, number, 4, WIDTH, generator=rng)
    return EpisodeTokens(cls, patch, normalize(cls.roll(1, -1) + 0.1, dim=-1))


def text_of(*leading: int) -> Tensor:
    rng = torch.Generator().manual_seed(9)
    return normalize(torch.randn(*leading, 3, WIDTH, generator=rng), dim=-1)


SUPPORT, QUERY, TEXT = tokens_of(6), tokens_of(5, seed=1), text_of()
SUPPORT_Y = torch.tensor([0, 0, 1, 1, 2, 2])


def test_zero_shot_and_tip_adapter_are_the_published_formulas() -> None:
    assert QUERY.proj is not None and SUPPORT.proj is not None
    f, names, shown = QUERY.proj.numpy(), TEXT.numpy(), SUPPORT.proj.numpy()
    cosines = 100 * f @ names.T
    np.testing.assert_allclose(
        ZeroShot().logits(SUPPORT, SUPPORT_Y, QUERY, 3, TEXT), cosines, rtol=1e-5, atol=1e-4
    )
    expected = cosines + 2 * np.exp(-5.5 * (1 - f @ shown.T)) @ np.eye(3)[SUPPORT_Y]
    logits = TipAdapter(alpha=2, beta=5.5).logits(SUPPORT, SUPPORT_Y, QUERY, 3, TEXT)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-4)


def test_proto_simpleshot_and_nearest_neighbour_equal_distances_written_out() -> None:
    q, s = QUERY.cls.double().numpy(), SUPPORT.cls.double().numpy()

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def minus_distances(x: np.ndarray, shown: np.ndarray) -> np.ndarray:
        means = np.stack([shown[label == SUPPORT_Y].mean(axis=0) for label in range(3)])
        return -((x[:, None] - means) ** 2).sum(axis=-1)

    proto = Proto().logits(SUPPORT, SUPPORT_Y, QUERY, 3)
    np.testing.assert_allclose(proto, minus_distances(q, s), rtol=1e-4)
    centre = s.mean(axis=0)
    by_support = SimpleShot(None).logits(SUPPORT, SUPPORT_Y, QUERY, 3)
    expected = minus_distances(unit(q - centre), unit(s - centre))
    np.testing.assert_allclose(by_support, expected, rtol=1e-4)
    by_base = SimpleShot(torch.ones(WIDTH)).logits(SUPPORT, SUPPORT_Y, QUERY, 3)
    np.testing.assert_allclose(by_base, minus_distances(unit(q - 1), unit(s - 1)), rtol=1e-4)
    cosines = unit(q) @ unit(s).T
    expected = np.stack([cosines[:, label == SUPPORT_Y].max(axis=1) for label in range(3)], axis=1)
    nearest = NearestNeighbour().logits(SUPPORT, SUPPORT_Y, QUERY, 3)
    np.testing.assert_allclose(nearest, expected, rtol=1e-4)


def test_the_linear_probe_starts_at_the_names_and_descends_on_the_support() -> None:
    assert SUPPORT.proj is not None
    start = LinearProbe(1e-3, 0).logits(SUPPORT, SUPPORT_Y, QUERY, 3, TEXT)
    torch.testing.assert_close(start, ZeroShot().logits(SUPPORT, SUPPORT_Y, QUERY, 3, TEXT))
    weights = TEXT.clone().requires_grad_()
    for _ in range(7):
        loss = torch.nn.functional.cross_entropy(100 * SUPPORT.proj @ weights.T, SUPPORT_Y)
        (gradient,) = torch.autograd.grad(loss, weights)
        weights = (weights - 1e-3 * gradient).detach().requires_grad_()
    logits = LinearProbe(1e-3, 7).logits(SUPPORT, SUPPORT_Y, QUERY, 3, TEXT)
    torch.testing.assert_close(logits, 100 * QUERY.proj @ weights.detach().T, rtol=1e-4, atol=1e-3)  # type: ignore[operator]


@pytest.mark.parametrize("method", ALL, ids=lambda method: type(method).__name__)
def test_episodes_together_score_as_each_alone(method: Method) -> None:
    support, query, text = tokens_of(6, 4), tokens_of(5, 4, seed=1), text_of(4)
    together = method.logits(support, SUPPORT_Y, query, 3, text)
    assert together.shape == (4, 5, 3)
    for number in range(4):
        alone = method.logits(support[number], SUPPORT_Y, query[number], 3, text[number])
        torch.testing.assert_close(together[number], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ALL, ids=lambda method: type(method).__name__)
def test_the_order_of_support_and_classes_does_not_matter(method: Method) -> None:
    plain = method.logits(SUPPORT, SUPPORT_Y, QUERY, 3, TEXT)
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    torch.testing.assert_close(
        method.logits(SUPPORT[order], SUPPORT_Y[order], QUERY, 3, TEXT), plain, rtol=1e-4, atol=1e-4
    )
    renamed = torch.tensor([2, 0, 1])
    permuted = method.logits(SUPPORT, renamed[SUPPORT_Y], QUERY, 3, TEXT[renamed.argsort()])
    torch.testing.assert_close(permuted[:, renamed], plain, rtol=1e-4, atol=1e-4)


def world_of(seed: int, *, noise: float = 1.0) -> World:
    """Make classes that images show and names hint at.

    Images are Gaussians around a direction of the class; the name is a noisy copy of it.
    """
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=rng)
    class_index = torch.arange(CLASSES).repeat_interleave(EACH)
    images = len(class_index)
    cls = centres[class_index] + noise * torch.randn(images, WIDTH, generator=rng)
    names = normalize(centres + 3 * torch.randn(CLASSES, WIDTH, generator=rng), dim=-1)
    labels = [f"class {index}" for index in class_index.tolist()]
    tokens = ImageTokens(
        keys=[str(row) for row in range(images)],
        labels=[(label,) for label in labels],
        annotations=[{}] * images,
        media=[str(row) for row in range(images)],
        cls=cls,
        patch=(cls[:, None] + torch.randn(images, 4, WIDTH, generator=rng)).half(),
        proj=normalize(cls, dim=-1),
        grid=(2, 2),
    )
    return World(tokens, labels, {f"class {index}": names[index] for index in range(CLASSES)})


def sampler_of(world: World, **form: int) -> EpisodeSampler:
    full = {"way": 3, "shot": 2, "queries": 5, "episodes": 130, "seed": 3} | form
    return EpisodeSampler(world.labels, **full)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_examples_help_and_chosen_settings_are_the_best_of_the_grid(seed: int) -> None:
    world, val = world_of(seed), world_of(seed + 10)
    episodes, val_episodes = list(sampler_of(world)), list(sampler_of(val, episodes=60))
    names = accuracy(ZeroShot(), world, episodes)
    for grid in (TipAdapter.grid, LinearProbe.grid):
        best, reached = best_on_validation(grid(), val, val_episodes)
        assert reached == max(accuracy(method, val, val_episodes) for method in grid())
        assert accuracy(best, world, episodes) > names + 5
    assert accuracy(Proto(), world, episodes) > 100 / 3 + 20


def test_the_highest_score_is_predicted_however_episodes_are_batched() -> None:
    world = world_of(0)
    episodes = list(sampler_of(world))
    for method in (Proto(), GLIMLHead(WIDTH, 4).eval()):
        predictions = classify(method, world, episodes)
        assert predictions.predicted.shape == (130, 15) and not predictions.constant
        for number in (0, 99, 129):
            episode = episodes[number]
            support = EpisodeTokens.of(world.tokens, episode.support)
            query = EpisodeTokens.of(world.tokens, episode.query)
            with torch.no_grad():
                logits = method.logits(support, torch.from_numpy(episode.support_y), query, 3)
            assert predictions.predicted[number].tolist() == logits.argmax(dim=1).tolist()


def test_constant_scores_are_marked_and_broken_ones_are_refused() -> None:
    world = world_of(0)
    episodes = list(sampler_of(world, episodes=3))
    world.tokens.cls.zero_()
    assert classify(Proto(), world, episodes).constant
    world.tokens.cls[episodes[2].query[0]] = float("nan")
    with pytest.raises(
        NumericsError, match="proto gives scores that are not finite in episodes 0 to 3"
    ):
        classify(Proto(), world, episodes, "proto")


def test_costs_count_products_and_weights() -> None:
    world = world_of(0)
    episode = sampler_of(world)[0]
    assert cost(ZeroShot(), world, episode) == {
        "parameters": 0,
        "flops_per_episode": 2 * 15 * 3 * WIDTH,
    }
    head = cost(GLIMLHead(WIDTH, 4).eval(), world, episode)
    assert head["parameters"] > 2 * WIDTH**2
    assert head["flops_per_episode"] >= 2 * 15 * 3 * 4 * 4 * WIDTH


def test_methods_that_cannot_run_are_left_out_with_a_reason_or_refused_if_requested() -> None:
    names, problems = usable(None, joint=True, base=True, val=True, mode="frozen")
    assert names == list(METHODS) and not problems
    names, problems = usable(None, joint=False, base=False, val=True, mode="frozen")
    assert names == ["nearest_neighbour", "proto", "simpleshot", "gliml_untrained"]
    assert "no space that images share with texts" in problems["tip_adapter"]
    assert "--base" in problems["gliml"]
    names, _ = usable(["proto", "zero_shot"], joint=True, base=False, val=False, mode="none")
    assert names == ["zero_shot", "proto"]
    for requested, message in {
        "tip_adapter": "tip_adapter cannot run: .*--val",
        "linear_probe": "--val",
        "gliml": "--base",
        "maml": "no method 'maml'",
    }.items():
        with pytest.raises(UsageError, match=message):
            usable([requested], joint=True, base=False, val=False, mode="frozen")
    with pytest.raises(UsageError, match='the mode is "none"'):
        usable(["cpea"], joint=True, base=True, val=True, mode="none")
