"""Heads of metric learning on synthetic data with known signals to learn and to forget."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from data_pipeline.errors import DataError, UsageError
from eval.encoding.labelled_images import ImageTokens
from eval.metrics.neighbours import neighbours
from eval.stages.metric_learning.comparison import Comparison
from eval.stages.metric_learning.heads.adversary import ClassAdversary, GradientReversal
from eval.stages.metric_learning.heads.gdfl import Embedded, GDFLEmbedder
from eval.stages.metric_learning.losses import metric_loss
from eval.stages.metric_learning.methods import Trained
from eval.stages.metric_learning.options import LOSSES
from eval.stages.metric_learning.probes import MOST_CLASSES, leakage_probe
from eval.stages.metric_learning.scores import metrics
from eval.stages.metric_learning.selection import Selection, select_settings
from eval.stages.metric_learning.stage import WEIGHTS
from eval.stages.metric_learning.training import (
    ClassBatches,
    Settings,
    attention,
    class_folds,
    embed,
    train_dml,
)

GRID = (1, 1)


pytestmark = pytest.mark.usefixtures("one_thread")


class Perceptron(nn.Module):
    """An embedder that can forget: two layers on the only patch."""

    layers = (1,)

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 32)

    def forward(self, layers: dict[int, Tensor], grid: tuple[int, int]) -> Embedded:
        general = F.normalize(self.body(layers[1][:, 1]), dim=1)
        return Embedded(F.normalize(self.head(general), dim=1), general)


def recall_at_1(descriptors: Tensor, labels: np.ndarray) -> float:
    return 100 * neighbours(descriptors, labels.tolist(), ks=(1,)).means()["recall@1"]


def leakage(general: Tensor, labels: np.ndarray, probe: str = "linear") -> float:
    held, predicted = leakage_probe(general.numpy(), labels, probe)
    return 100 * float((predicted == labels[held]).mean())


def tokens_of(features: np.ndarray) -> dict[int, Tensor]:
    """Make one block with one patch, which holds the features of the image."""
    return {1: torch.tensor(features, dtype=torch.float32)[:, None].repeat(1, 2, 1)}


# --- gradient reversal ----------------------------------------------------------------------------


def test_reversal_is_the_identity_forwards_and_minus_lambda_backwards() -> None:
    features = torch.randn(5, 3, requires_grad=True, generator=torch.Generator().manual_seed(0))
    result = GradientReversal.apply(features, 0.7)
    assert torch.equal(result, features)
    weights = torch.arange(15.0).reshape(5, 3)
    (gradient,) = torch.autograd.grad((result * weights).sum(), features)
    assert torch.equal(gradient, -0.7 * weights)


def test_the_adversary_learns_with_the_plain_sign_and_the_features_with_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    general = torch.randn(12, 8, generator=generator, requires_grad=True)
    labels = torch.arange(12) % 3
    adversary = ClassAdversary(8, 3)
    parameters = list(adversary.classifier.parameters())
    once = torch.autograd.grad(adversary.encoder_loss(general, labels, 1.0), [general, *parameters])
    twice = torch.autograd.grad(
        adversary.encoder_loss(general, labels, 2.0), [general, *parameters]
    )
    assert torch.allclose(twice[0], 2 * once[0])
    assert all(torch.equal(a, b) for a, b in zip(once[1:], twice[1:], strict=True))
    loss = float(adversary.encoder_loss(general, labels, 1.0).detach())
    with torch.no_grad():
        assert float(adversary.encoder_loss(general - 0.1 * once[0], labels, 1.0)) > loss
        for parameter, gradient in zip(parameters, once[1:], strict=True):
            parameter -= 0.01 * gradient
    assert float(adversary.encoder_loss(general, labels, 1.0).detach()) < loss


def test_an_adversary_of_weight_0_trains_the_same_embedder_as_none() -> None:
    tokens, coarse, fine = nested_world(0)
    result = []
    for kind in ("grl", "none"):
        embedder = Perceptron(0)
        train_dml(
            embedder,
            tokens,
            GRID,
            coarse,
            Settings(adversary=kind, strength=0.0, steps=5),
            against=fine,
        )
        result.append(embed(embedder, tokens, GRID)[0])
    assert torch.equal(*result)


# --- leakage --------------------------------------------------------------------------------------


def test_a_probe_distinguishes_at_most_500_classes_and_the_same_ones_for_any_seed() -> None:
    classes = np.repeat(np.arange(620), 4)
    angle = 2 * np.pi * classes / 620
    probed = []
    for seed in (0, 1):
        held, predicted = leakage_probe(
            np.stack([np.sin(angle), np.cos(angle)], axis=1), classes, seed=seed
        )
        assert held.sum() == len(predicted) == 2 * MOST_CLASSES == 1000
        probed.append(set(classes[held].tolist()))
        assert set(predicted.tolist()) <= probed[-1]
    # Drawn from all classes, not the first 500.
    assert probed[0] == probed[1] and min(probed[0]) < 50 and max(probed[0]) > 570


def nested_world(seed: int) -> tuple[dict[int, Tensor], np.ndarray, np.ndarray]:
    """Make six coarse classes of five fine classes each: features should keep only the coarse."""
    generator = np.random.default_rng([seed, 7])
    coarse_codes, fine_codes = 1.5 * generator.normal(size=(6, 12)), generator.normal(size=(30, 12))
    fine = np.repeat(np.arange(30), 40)
    features = np.concatenate([coarse_codes[fine // 5], fine_codes[fine]], axis=1)
    features += 0.8 * generator.normal(size=features.shape)
    return tokens_of(features @ generator.normal(size=(24, 48)) / 24**0.5), fine // 5, fine


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_an_adversary_halves_what_a_fresh_probe_reads_and_the_task_is_kept(
    seed: int,
) -> None:
    tokens, coarse, fine = nested_world(seed)
    read = {}
    for kind in ("none", "grl", "ridge"):
        embedder = Perceptron(seed)
        training = Settings(
            "supcon", kind, strength=1.0, steps=300, classes=6, per_class=16, seed=seed
        )
        train_dml(embedder, tokens, GRID, coarse, training, against=fine)
        descriptors, general = embed(embedder, tokens, GRID)
        read[kind] = leakage(general, fine)
        assert recall_at_1(descriptors, coarse) >= 99
    assert read["grl"] <= 0.5 * read["none"]
    assert read["ridge"] <= 0.5 * read["none"]


def test_reported_leakage_is_that_of_a_fresh_probe_and_not_the_adversary_s_accuracy() -> None:
    """Adversaries of weight 0: one reads the class, the accuracy of `ridge` is 0 by definition."""
    tokens, labels, unseen, unseen_labels = code_world(0)
    learnt, measured = image_tokens(tokens, labels), image_tokens(unseen, unseen_labels)
    comparison = Comparison(learnt, {"data": measured}, "classes", (1,), 0, 0, torch.device("cpu"))
    head = Trained("gdfl", lambda: Perceptron(0), adversary=True)
    accuracy, reported = {}, {}
    for kind in ("none", "grl", "ridge"):
        training = Settings("supcon", kind, strength=0.0, steps=30)
        embedder = Perceptron(0)
        curves = train_dml(embedder, tokens, GRID, labels, training)
        accuracy[kind] = np.mean(curves.adversary[-10:])
        selection = Selection(training, training, [])
        lines = list(comparison.of_trained([head], selection, [0]))
        reported[kind] = {m.name: m.value for m in metrics(lines) if m.name.startswith("leakage/")}
        fresh = leakage(embed(embedder, tokens, GRID)[1], labels)
        assert reported[kind]["leakage/gdfl/linear"] == pytest.approx(fresh)
    assert accuracy["ridge"] == 0 and accuracy["grl"] >= 0.3
    assert (
        reported["none"] == reported["grl"] == reported["ridge"]
        and min(reported["ridge"].values()) >= 60
    )


def image_tokens(layers: dict[int, Tensor], labels: np.ndarray) -> ImageTokens:
    keys = [f"{number:04d}" for number in range(len(labels))]
    names = [(f"class {label:02d}",) for label in labels]
    tokens = layers[1]
    return ImageTokens(
        keys, names, [{} for _ in keys], keys, tokens[:, 0], tokens[:, 1:], None, GRID, layers
    )


# --- unseen classes -------------------------------------------------------------------------------


def code_world(seed: int) -> tuple[dict[int, Tensor], np.ndarray, dict[int, Tensor], np.ndarray]:
    """Make noisy attributes that all classes share, and clean codes that only seen classes have."""
    generator = np.random.default_rng([seed, 11])
    attributes, codes = generator.normal(size=(80, 16)), generator.normal(size=(40, 24))
    labels = np.repeat(np.arange(80), 12)
    seen = labels < 40
    code = np.where(seen[:, None], codes[np.minimum(labels, 39)], generator.normal(size=(960, 24)))
    noisy = attributes[labels] + 0.5 * generator.normal(size=(960, 16))
    features = np.concatenate([noisy, code + 0.3 * generator.normal(size=(960, 24))], axis=1)
    features = features @ np.linalg.qr(generator.normal(size=(48, 48)))[0][:40]
    return tokens_of(features[seen]), labels[seen], tokens_of(features[~seen]), labels[~seen]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_an_adversary_helps_the_head_on_unseen_classes_but_frozen_features_are_better(
    seed: int,
) -> None:
    """The weight is the largest that the stage tries.

    The frozen features hold all attributes of unseen classes (about 76 %): a head trained on seen
    classes loses most of them, with an adversary (25 %) and without (19 %).
    """
    tokens, labels, unseen, unseen_labels = code_world(seed)
    result = {}
    for kind, strength in (("none", 0.0), ("grl", WEIGHTS[-1])):
        embedder = Perceptron(seed)
        train_dml(
            embedder, tokens, GRID, labels, Settings("supcon", kind, strength, steps=200, seed=seed)
        )
        result[kind] = recall_at_1(embed(embedder, unseen, GRID)[0], unseen_labels)
    assert result["grl"] >= result["none"] + 5
    assert recall_at_1(F.normalize(unseen[1][:, 1], dim=1), unseen_labels) >= result["grl"] + 30


# --- blocks and attention -------------------------------------------------------------------------


def layered_world(
    seed: int,
) -> tuple[dict[int, Tensor], np.ndarray, dict[int, Tensor], np.ndarray, np.ndarray]:
    """Put shared attributes in 2 of 16 patches of block 1, and seen classes' codes in block 2."""
    generator = np.random.default_rng([seed, 5])
    labels = np.repeat(np.arange(80), 10)
    seen, count = labels < 40, len(labels)
    attributes = (
        generator.normal(size=(80, 16)) @ np.linalg.qr(generator.normal(size=(32, 32)))[0][:16]
    )
    mark = generator.normal(size=32)
    mark *= 6 / np.linalg.norm(mark)
    planted = np.stack([generator.permutation(16)[:2] for _ in range(count)])
    early = 0.3 * generator.normal(size=(count, 16, 32))
    early[np.arange(count)[:, None], planted] += (2.5 * attributes[labels] + mark)[:, None]
    code = np.where(
        seen[:, None],
        generator.normal(size=(40, 32))[np.minimum(labels, 39)],
        generator.normal(size=(count, 32)),
    )
    last = 2 * code[:, None] + 0.5 * generator.normal(size=(count, 16, 32))
    seen_blocks, unseen_blocks = {}, {}
    for number, patches in ((1, early), (2, last)):
        with_mean = np.concatenate([patches.mean(axis=1, keepdims=True), patches], axis=1)
        tokens = torch.tensor(with_mean, dtype=torch.float32)
        seen_blocks[number], unseen_blocks[number] = tokens[seen], tokens[~seen]
    return seen_blocks, labels[seen], unseen_blocks, labels[~seen], planted[~seen]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_attention_over_several_blocks_finds_what_the_last_block_or_mean_patches_lack(
    seed: int,
) -> None:
    tokens, labels, unseen, unseen_labels, planted = layered_world(seed)
    result = {}
    for name, layers, kind in (
        ("all", (1, 2), "spatial"),
        ("last", (2,), "spatial"),
        ("unattended", (1, 2), "mean"),
    ):
        torch.manual_seed(seed)
        embedder = GDFLEmbedder(32, layers, per_layer=32, embed=64, attention=kind)
        train_dml(
            embedder, tokens, (4, 4), labels, Settings("supcon", "none", steps=150, seed=seed)
        )
        result[name] = recall_at_1(embed(embedder, unseen, (4, 4))[0], unseen_labels)
        if name == "all":
            mass = (
                attention(embedder, unseen, (4, 4))[1]
                .gather(1, torch.from_numpy(planted))
                .sum(1)
                .mean()
            )
    assert result["all"] >= result["last"] + 20
    assert result["all"] >= result["unattended"] + 20
    assert mass >= 0.4


@pytest.mark.parametrize("kind", ["spatial", "channel", "both", "mean"])
def test_attention_of_every_kind_sums_to_one_and_descriptors_have_length_one(kind: str) -> None:
    tokens, *_ = layered_world(0)
    torch.manual_seed(0)
    made = GDFLEmbedder(32, (1, 2), 16, 24, kind)(
        {number: each[:6] for number, each in tokens.items()}, (4, 4)
    )
    assert made.embedding.shape == (6, 24) and made.general.shape == (6, 32)
    assert torch.allclose(made.embedding.norm(dim=1), torch.ones(6))
    assert all(torch.allclose(weights.sum(1), torch.ones(6)) for weights in made.weights.values())


# --- batches, losses, folds -----------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_falls_when_classes_come_together(loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 4
    centres = F.normalize(torch.randn(4, 16, generator=generator), dim=1)
    torch.manual_seed(0)
    module = metric_loss(loss, 4, 16)
    # Proxies of proxy_anchor are (classes, size), those of arcface the other way round.
    for proxies in module.parameters():
        proxies.data = centres.clone() if proxies.shape[0] == 4 else centres.T.clone()
    spread = F.normalize(torch.randn(24, 16, generator=generator), dim=1)
    with torch.no_grad():
        assert float(module(centres[labels], labels)) < float(module(spread, labels))


def test_an_unknown_loss_and_adversary_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="loss is 'hinge'"):
        metric_loss("hinge", 3, 4)
    with pytest.raises(UsageError, match="adversary is 'dann'"):
        ClassAdversary(4, 3, "dann")


def test_a_batch_depends_on_seed_and_step_alone_and_holds_four_images_of_each_class() -> None:
    labels = np.repeat(np.arange(9), [1, 3, 5, 5, 5, 5, 5, 5, 5])
    batches, again = ClassBatches(labels, 4, 4, 3), ClassBatches(labels, 4, 4, 3)
    assert np.array_equal(batches.rows(7), again.rows(7))
    assert not np.array_equal(batches.rows(7), batches.rows(8))
    for step in range(50):
        classes, counts = np.unique(labels[batches.rows(step)], return_counts=True)
        assert len(classes) == 4 and set(counts) == {4}
        assert 0 not in classes  # a single image has no pair


def test_training_twice_gives_the_same_bits() -> None:
    tokens, coarse, fine = nested_world(1)
    result = []
    for _ in range(2):
        embedder = Perceptron(1)
        torch.manual_seed(torch.seed())  # torch's own generator must not matter
        train_dml(
            embedder,
            tokens,
            GRID,
            coarse,
            Settings("proxy_anchor", "grl", 1.0, steps=10),
            against=fine,
        )
        result.append(embed(embedder, tokens, GRID)[0])
    assert torch.equal(*result)


def test_a_single_image_per_class_is_refused() -> None:
    tokens, _, _ = nested_world(0)
    with pytest.raises(DataError, match="0 of 1200 classes to learn from have two images"):
        train_dml(Perceptron(0), tokens, GRID, np.arange(1200), Settings())


@settings(deadline=None, max_examples=50)
@given(
    st.integers(2, 5), st.integers(0, 9), st.lists(st.integers(0, 30), min_size=40, max_size=120)
)
def test_no_class_of_a_fold_is_trained_on_and_every_class_is_held_out_once(
    folds: int, seed: int, drawn: list[int]
) -> None:
    labels = [f"class {number}" for number in drawn]
    if len(set(labels)) < 2 * folds:
        with pytest.raises(DataError, match="cannot be divided"):
            class_folds(labels, folds, seed)
        return
    held_out = []
    for train, held in class_folds(labels, folds, seed):
        assert not {labels[row] for row in train} & {labels[row] for row in held}
        assert sorted([*train, *held]) == list(range(len(labels)))
        held_out += sorted({labels[row] for row in held})
    assert sorted(held_out) == sorted(set(labels))


def test_weight_and_step_are_chosen_on_held_out_classes_alone() -> None:
    tokens, labels, _, _ = code_world(0)
    names = [f"class {label:02d}" for label in labels]
    training = Settings("supcon", "grl", steps=8)
    selection = select_settings(
        lambda seed: Perceptron(seed), tokens, GRID, names, training, (0.1, 10.0), 2
    )
    assert [row["lambda"] for row in selection.table] == [0.0, 0.1, 10.0]
    best = max(selection.table[1:], key=lambda row: max(row["map@r"].values()))
    assert selection.chosen.strength == best["lambda"]
    assert best["map@r"][selection.chosen.stop] == max(best["map@r"].values())
    assert selection.without.adversary == "none"
