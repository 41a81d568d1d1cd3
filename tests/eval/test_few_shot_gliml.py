"""GLIML: the arithmetic of the relation, worlds that need both kinds of tokens, and training."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from data_pipeline.errors import NumericsError, UsageError
from eval.encoding.encoders import Encoder, load_encoder
from eval.encoding.labelled_images import ImageTokens, pool_patches
from eval.stages.few_shot.baselines import Proto
from eval.stages.few_shot.cpea import CPEAHead
from eval.stages.few_shot.episode_tokens import EpisodeTokens
from eval.stages.few_shot.episodes import Episode, EpisodeSampler
from eval.stages.few_shot.gliml import GLICCE, GLICL, GLIMLHead
from eval.stages.few_shot.inference import World, accuracy
from eval.stages.few_shot.training import (
    EpochLog,
    Finetuning,
    TrainSettings,
    add_gradients,
    encode_again,
    train_head,
)
from tests.eval.colours import write_model, write_tokenizer
from tests.eval.interplay_world import EMPTY, IRRELEVANT, RELEVANT, Drawn, InterplayWorld

SEEDS = [0, 1, 2]
WIDTH, PATCHES, WAY = 64, 9, 5
LOCAL = {"include_global": False}
LOCAL_ALONE = {"interplay": "none", "include_global": False}  # learns only a scale
INTERPLAYS, SCORES = ("none", "additive", "gated"), ("gated_sum", "mlp")
HEADS: list[dict] = []
for interplay, score, include_global in product(INTERPLAYS, SCORES, (False, True)):
    HEADS.append({"interplay": interplay, "head": score, "include_global": include_global})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def splits(seed: int) -> dict[str, Drawn]:
    world = InterplayWorld(seed)
    return {
        "base": world.draw("base", 480, queries=5),
        "val": world.draw("val", 30),
        "novel": world.draw("novel", 120),
    }


def train(head: GLIMLHead, drawn: dict[str, Drawn], settings: TrainSettings) -> EpochLog:
    base, val = drawn["base"], drawn["val"]
    return train_head(head, base.world, base.episodes, val.world, val.episodes, settings)


@cache
def trained(seed: int) -> GLIMLHead:
    """Train 60 steps of 8 episodes, with only the block of local tokens.

    Without a global token in the relation, it is the gate alone that uses the class token.
    """
    head = GLIMLHead(WIDTH, PATCHES, **LOCAL, seed=seed)
    train(head, splits(seed), TrainSettings(epochs=2, seed=seed))
    return head


def measured(head: GLIMLHead | Proto, drawn: Drawn) -> float:
    return accuracy(head, drawn.world, drawn.episodes)


def random_tokens(
    count: int, seed: int = 0, patches: int = PATCHES, width: int = 16
) -> EpisodeTokens:
    drawn = torch.Generator().manual_seed(seed)
    cls = torch.randn(count, width, generator=drawn)
    return EpisodeTokens(cls, torch.randn(count, patches, width, generator=drawn))


def awake(head: GLIMLHead) -> GLIMLHead:
    """Move every parameter off its start, so that none is zero or the identity."""
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=drawn)
    return head


@pytest.mark.parametrize("seed", SEEDS)
def test_interplay_recognizes_parts_that_neither_global_nor_local_tokens_show(seed: int) -> None:
    novel = splits(seed)["novel"]
    interplay = measured(trained(seed), novel)
    local = measured(GLIMLHead(WIDTH, PATCHES, **LOCAL_ALONE), novel)
    class_tokens = measured(Proto(), novel)
    print(f"seed {seed}: interplay {interplay:.1f}, local {local:.1f}, global {class_tokens:.1f}")
    assert interplay >= 70
    assert interplay >= local + 30
    assert abs(class_tokens - 20) <= 4  # chance: all class tokens of an episode are equal


@pytest.mark.parametrize("seed", SEEDS)
def test_patches_that_do_not_fit_the_global_token_get_little_weight(seed: int) -> None:
    novel = splits(seed)["novel"]
    w = weights(trained(seed), novel)
    share = {}
    for role in (RELEVANT, IRRELEVANT, EMPTY):
        share[role] = float((w * (novel.role == role)).sum(1).mean())
    print(f"seed {seed}: irrelevant {share[IRRELEVANT]:.2f}, relevant {share[RELEVANT]:.2f}")
    assert share[IRRELEVANT] <= 0.6 * 4 / 9
    assert share[RELEVANT] >= 2.5 / 9
    assert sum(share.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_pooled_features_vary_less_within_a_class_than_the_mean_does(seed: int) -> None:
    novel = splits(seed)["novel"]
    patch = novel.world.tokens.patch
    weighted = (weights(trained(seed), novel)[..., None] * patch).sum(1)
    within = within_share(weighted, novel.episodes)
    uniform = within_share(patch.mean(1), novel.episodes)
    print(f"seed {seed}: within / total {within:.2f}, of the mean {uniform:.2f}")
    assert within <= uniform - 0.15


@pytest.mark.parametrize("seed", SEEDS)
def test_the_default_of_four_blocks_beats_local_tokens_and_scales_down_useless_blocks(
    seed: int,
) -> None:
    drawn, head = splits(seed), GLIMLHead(WIDTH, PATCHES, seed=seed)
    untrained = measured(head, drawn["novel"])
    train(head, drawn, TrainSettings(epochs=2, seed=seed))
    blocks = measured(head, drawn["novel"])
    local = measured(GLIMLHead(WIDTH, PATCHES, **LOCAL_ALONE), drawn["novel"])
    print(f"seed {seed}: four blocks {blocks:.1f}, untrained {untrained:.1f}, local {local:.1f}")
    assert blocks >= 65
    assert blocks >= local + 30
    assert blocks >= untrained + 15
    tau = head.similarity.log_tau
    assert tau[0, 0] < 0 < tau[1, 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_class_tokens_of_other_images_remove_the_gain(seed: int) -> None:
    novel = splits(seed)["novel"]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(novel.world.tokens)))
    tokens = replace(novel.world.tokens, cls=novel.world.tokens.cls[order])
    shuffled = accuracy(trained(seed), replace(novel.world, tokens=tokens), novel.episodes)
    local = measured(GLIMLHead(WIDTH, PATCHES, **LOCAL_ALONE), novel)
    print(f"seed {seed}: shuffled {shuffled:.1f}, local {local:.1f}")
    assert shuffled <= local + 5


@pytest.mark.parametrize("seed", SEEDS)
def test_lambda_chosen_on_validation_beats_the_constant_of_cpea(seed: int) -> None:
    world = InterplayWorld(seed, families=2, distractors=1, grid=(1, 2), noise=1.0)
    drawn = {
        "base": world.draw("base", 400, queries=5),
        "val": world.draw("val", 20),
        "novel": world.draw("novel", 60),
    }
    settings = TrainSettings(epochs=1, seed=seed)
    searched = GLIMLHead(WIDTH, 2, interplay="additive", head="mlp", **LOCAL)
    constant = CPEAHead(WIDTH, 2)
    log = train(searched, drawn, replace(settings, lambdas=(0.5, 2.0)))
    train(constant, drawn, settings)
    chosen, published = measured(searched, drawn["novel"]), measured(constant, drawn["novel"])
    print(f"seed {seed}: lambda {log.best.lam} {chosen:.1f}, 2.0 {published:.1f}")
    assert searched.interplay.lam == log.best.lam == 0.5
    assert chosen >= published + 30


@pytest.mark.parametrize("seed", SEEDS)
def test_interplay_gives_the_mlp_what_local_tokens_alone_do_not(seed: int) -> None:
    world = InterplayWorld(seed, families=2, distractors=1, grid=(1, 2), noise=1.0)
    drawn = {
        "base": world.draw("base", 1200, queries=5),
        "val": world.draw("val", 20),
        "novel": world.draw("novel", 60),
    }
    by_lambda = {}
    for lam in (0.0, 0.5):
        head = GLIMLHead(WIDTH, 2, interplay="additive", lam=lam, head="mlp", **LOCAL)
        train(head, drawn, TrainSettings(epochs=3, seed=seed))
        by_lambda[lam] = measured(head, drawn["novel"])
    print(f"seed {seed}: {by_lambda}")
    assert by_lambda[0.5] >= by_lambda[0.0] + 3  # measured: 9.8, 8.3, 5.3


def weights(head: GLIMLHead, drawn: Drawn) -> torch.Tensor:
    tokens = EpisodeTokens(drawn.world.tokens.cls, drawn.world.tokens.patch)
    return head.explain(tokens[:1], tokens).query_weights


def within_share(features: torch.Tensor, episodes: list[Episode]) -> float:
    """Return the variance within classes divided by the variance within episodes."""
    within, total = 0.0, 0.0
    for episode in episodes:
        rows = np.concatenate([episode.support, episode.query])
        class_index = np.concatenate([episode.support_y, episode.query_y])
        shown = features[torch.from_numpy(rows)]
        means = torch.stack([shown[class_index == label].mean(0) for label in range(WAY)])
        within += float((shown - means[class_index]).square().sum())
        total += float((shown - shown.mean(0)).square().sum())
    return within / total


def test_cross_covariance_equals_that_of_numpy() -> None:
    query, support = random_tokens(3).patch.double(), random_tokens(2, 1, patches=4).patch.double()
    covariance = GLICCE.cross_covariance(query, support)
    assert covariance.shape == (3, 2, PATCHES, 4)
    for q, s in product(range(3), range(2)):
        block = np.cov(query[q].numpy(), support[s].numpy())[:PATCHES, PATCHES:]
        assert np.abs(covariance[q, s].numpy() - block).max() < 1e-6


@pytest.mark.parametrize("settings", HEADS)
def test_gated_sum_ignores_the_order_of_patches_and_the_mlp_does_not(settings: dict) -> None:
    head = awake(GLIMLHead(16, PATCHES, **settings))
    support, query, y = random_tokens(3), random_tokens(4, 1), torch.arange(3)
    order = torch.randperm(PATCHES, generator=torch.Generator().manual_seed(5))
    moved = [EpisodeTokens(tokens.cls, tokens.patch[:, order]) for tokens in (support, query)]
    logits, moved_logits = head.logits(support, y, query, 3), head.logits(moved[0], y, moved[1], 3)
    same = torch.allclose(logits, moved_logits, atol=1e-5)
    assert same == (settings["head"] == "gated_sum")


@pytest.mark.parametrize("settings", HEADS)
def test_with_one_shot_both_averages_are_equal(settings: dict) -> None:
    support, query, y = random_tokens(3), random_tokens(4, 1), torch.tensor([2, 0, 1])
    by_map = awake(GLIMLHead(16, PATCHES, **settings, shots="map_mean"))
    by_score = awake(GLIMLHead(16, PATCHES, **settings, shots="score_mean"))
    torch.testing.assert_close(
        by_map.logits(support, y, query, 3), by_score.logits(support, y, query, 3)
    )


@pytest.mark.parametrize("settings", HEADS)
@pytest.mark.parametrize("shots", ["map_mean", "score_mean"])
def test_several_episodes_at_once_score_as_each_alone(settings: dict, shots: str) -> None:
    head = awake(GLIMLHead(16, PATCHES, **settings, shots=shots))
    supports = [random_tokens(4, seed) for seed in (0, 1)]
    queries = [random_tokens(5, seed) for seed in (2, 3)]
    y = torch.tensor([0, 0, 1, 2])  # classes may have unequal numbers of examples
    together = head.logits(stacked(supports), y, stacked(queries), 3)
    alone = []
    for support, query in zip(supports, queries, strict=True):
        alone.append(head.logits(support, y, query, 3))
    torch.testing.assert_close(together, torch.stack(alone))
    assert together.shape == (2, 5, 3)


def stacked(several: list[EpisodeTokens]) -> EpisodeTokens:
    cls = torch.stack([tokens.cls for tokens in several])
    return EpisodeTokens(cls, torch.stack([tokens.patch for tokens in several]))


def test_episodes_do_not_depend_on_the_number_of_workers() -> None:
    labels = [f"class {number % 7}" for number in range(140)]
    drawn = []
    for workers in (0, 1, 2):
        sampler = EpisodeSampler(labels, way=5, shot=1, queries=3, episodes=12, seed=4)
        drawn.append(list(DataLoader(Rows(sampler), None, num_workers=workers)))
    assert len(drawn[0]) == 12
    for other in drawn[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(drawn[0], other, strict=True))


class Rows(torch.utils.data.Dataset):
    def __init__(self, sampler: EpisodeSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __getitem__(self, number: int) -> np.ndarray:
        episode = self.sampler[number]
        return np.concatenate([episode.support, episode.query])


def test_cpea_scores_as_its_equations_say() -> None:
    head = awake(CPEAHead(16, PATCHES))
    support, query, y = random_tokens(4), random_tokens(3, 1), torch.tensor([0, 0, 1, 1])

    def patches(tokens: EpisodeTokens) -> torch.Tensor:
        t = torch.cat([tokens.cls[:, None], tokens.patch], dim=1)
        t = head.interplay.norm(t + head.interplay.summary(t.mean(1, keepdim=True)))
        return t[:, 1:] + 2.0 * t[:, :1]

    def centred(z: torch.Tensor) -> torch.Tensor:
        z = z / z.norm(dim=-1, keepdim=True)
        return z - z.mean(-1, keepdim=True)

    q, s = centred(patches(query)), centred(patches(support).unflatten(0, (2, 2)).mean(1))
    relation = torch.einsum("qid,sjd->qsij", q, s).square().flatten(2)
    torch.testing.assert_close(
        head.logits(support, y, query, 2), head.similarity.mlp(relation).squeeze(-1)
    )


def test_an_untrained_gate_is_the_fit_of_patch_and_class_token() -> None:
    tokens = random_tokens(3)
    features = GLICL(16)(tokens.cls, tokens.patch)

    def standard(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True)

    fit = torch.einsum("nd,nld->nl", standard(tokens.cls), standard(tokens.patch)) / 4
    torch.testing.assert_close(features.w, fit.softmax(-1), atol=1e-4, rtol=1e-4)
    assert torch.equal(features.z, tokens.patch)


def test_gated_sum_fits_any_grid_and_the_mlp_names_the_grid_that_it_needs() -> None:
    support, query, y = random_tokens(2, patches=4), random_tokens(3, 1, patches=4), torch.arange(2)
    assert GLIMLHead(16, 9).logits(support, y, query, 2).shape == (3, 2)
    with pytest.raises(UsageError, match="reads 9 patches per image, the tokens have 4"):
        GLIMLHead(16, 9, head="mlp").logits(support, y, query, 2)


def test_shares_of_the_blocks_sum_to_one_and_are_local_without_a_global_token() -> None:
    support, query = random_tokens(2), random_tokens(3, 1)
    head = GLIMLHead(16, PATCHES, interplay="additive", head="mlp", include_global=True)
    explanation = head.explain(support, query)
    assert explanation.query_weights.shape == (3, PATCHES)
    assert explanation.support_weights.shape == (2, PATCHES)
    torch.testing.assert_close(explanation.shares.sum((-2, -1)), torch.ones(3, 2))
    assert (explanation.shares > 0).all()
    local = GLIMLHead(16, PATCHES, **LOCAL).explain(support, query).shares
    torch.testing.assert_close(local[..., 1, 1], torch.ones(3, 2))


@pytest.mark.parametrize(
    "settings", [{}, {"interplay": "additive", "head": "mlp", "include_global": True}]
)
def test_training_with_one_seed_repeats_to_the_bit_and_leaves_the_random_state_alone(
    settings: dict,
) -> None:
    drawn = splits(0)
    few = {name: replace(part, episodes=part.episodes[:16]) for name, part in drawn.items()}
    runs = []
    for seed in (3, 3, 4):
        torch.rand(1)  # draws of others in between do not matter
        before = torch.random.get_rng_state()
        head = GLIMLHead(WIDTH, PATCHES, seed=seed, **settings)
        log = train(head, few, TrainSettings(epochs=2, episodes_per_step=4, seed=seed))
        runs.append((log, head.state_dict()))
        assert torch.equal(torch.random.get_rng_state(), before)
    (log, first), (again, second), (_, third) = runs
    assert log == again
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)  # another seed


def test_the_head_kept_is_that_of_the_best_epoch() -> None:
    drawn = splits(1)
    head = GLIMLHead(WIDTH, PATCHES)
    log = train(head, drawn, TrainSettings(epochs=3, head_rate=0.3))  # a rate that destroys
    assert [epoch.epoch for epoch in log.epochs] == [0, 1, 2, 3]
    assert log.best.accuracy == max(epoch.accuracy for epoch in log.epochs)
    assert log.best.accuracy == measured(head, drawn["val"])


def test_without_training_nothing_changes_and_validation_is_measured() -> None:
    head = GLIMLHead(WIDTH, PATCHES)
    start = {name: value.clone() for name, value in head.state_dict().items()}
    log = train(head, splits(0), TrainSettings(mode="none"))
    assert log.epochs == [log.best]
    assert (log.best.epoch, log.best.loss) == (0, None)
    assert all(torch.equal(value, start[name]) for name, value in head.state_dict().items())


@pytest.mark.parametrize(
    ("head", "settings", "message"),
    [
        ({"head": "mlp"}, {"mode": "none"}, "is random without training"),
        ({}, {"lambdas": (0.0, 1.0)}, "gated interplay has no lambda"),
        ({}, {"mode": "finetune"}, "the mode finetune needs an encoder and pixels"),
        ({}, {"epochs": 1000}, "480 base episodes are too few for 1000 epochs"),
        ({}, {"mode": "freeze"}, '"freeze", must be one of frozen, finetune, none'),
        ({}, {"epochs": 0}, "epochs must be above 0"),
        ({}, {"label_smoothing": 1.0}, "label_smoothing"),
        ({"interplay": "gate"}, {}, '"gate", must be one of none, additive, gated'),
        ({"head": "sum"}, {}, '"sum", must be one of gated_sum, mlp'),
        ({"shots": "mean"}, {}, '"mean", must be one of map_mean, score_mean'),
    ],
)
def test_settings_that_do_not_fit_are_refused(head: dict, settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(GLIMLHead(WIDTH, PATCHES, **head), splits(0), TrainSettings(**settings))


def test_validation_must_exist_and_show_other_classes() -> None:
    drawn = splits(0)
    base, val = drawn["base"], drawn["val"]
    head, settings = GLIMLHead(WIDTH, PATCHES), TrainSettings()
    with pytest.raises(UsageError, match="share 1 classes, 'family"):
        shared = replace(val.world, labels=[base.world.labels[0], *val.world.labels[1:]])
        train_head(head, base.world, base.episodes, shared, val.episodes, settings)
    with pytest.raises(UsageError, match="give a validation split"):
        train_head(head, base.world, base.episodes, val.world, [], settings)


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    drawn = splits(0)
    broken = replace(drawn["base"].world.tokens, cls=drawn["base"].world.tokens.cls * float("nan"))
    base = replace(drawn["base"], world=replace(drawn["base"].world, tokens=broken))
    with pytest.raises(NumericsError, match="the training loss is nan"):
        train(GLIMLHead(WIDTH, PATCHES), drawn | {"base": base}, TrainSettings(epochs=1))


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    return write_model(root / "model", write_tokenizer(root / "tokenizer"))


def tinted(classes: list[int], count: int) -> tuple[torch.Tensor, list[str]]:
    """Return noisy images of 32 pixels with a faint tint of the class's hue on a random grey.

    Also returns the name of each image's class.
    """
    rng = np.random.default_rng(len(classes))
    pixels, names = [], []
    for number, _ in product(classes, range(count)):
        hue = np.cos(2 * np.pi * (number / 9 + np.arange(3) / 3))
        pixels.append(rng.uniform(70, 185) + 40 * hue + rng.normal(0, 15, (32, 32, 3)))
        names.append(f"hue {number}")
    return torch.from_numpy(np.stack(pixels).clip(0, 255).astype(np.uint8)), names


def world_of(encoder: Encoder, classes: list[int], count: int) -> tuple[World, torch.Tensor]:
    pixels, names = tinted(classes, count)
    keys = [str(row) for row in range(len(names))]
    # `encode_again` replaces the tokens and reads the grid alone.
    placeholder = ImageTokens(
        keys=keys,
        labels=[(name,) for name in names],
        annotations=[{}] * len(keys),
        media=keys,
        cls=torch.zeros(len(names), WIDTH),
        patch=torch.zeros(len(names), 4, WIDTH),
        proj=None,
        grid=(2, 2),
    )
    tokens = encode_again(encoder, lambda rows: pixels[list(rows)], placeholder)
    return World(tokens, names, None), pixels


def finetune(folder: Path) -> tuple[Encoder, EpochLog]:
    encoder = load_encoder(folder)
    base, base_pixels = world_of(encoder, [0, 1, 3, 4, 6, 7], 20)
    val, val_pixels = world_of(encoder, [2, 5, 8], 20)
    form = {"way": 3, "shot": 1, "queries": 3, "episodes": 60, "seed": 0}
    base_episodes = EpisodeSampler(base.labels, **form)
    val_episodes = list(EpisodeSampler(val.labels, **form))
    finetuning = Finetuning(
        encoder, lambda rows: base_pixels[list(rows)], lambda rows: val_pixels[list(rows)]
    )
    settings = TrainSettings("finetune", epochs=3, episodes_per_step=4, encoder_rate=1e-3)
    head = GLIMLHead(32, 4)
    log = train_head(head, base, base_episodes, val, val_episodes, settings, finetuning)
    return encoder, log


def test_fine_tuning_encodes_one_episode_at_a_time_and_gives_the_gradient_of_all(
    encoder_folder: Path,
) -> None:
    encoder, head = load_encoder(encoder_folder), awake(GLIMLHead(32, 4))
    images_read: list[int] = []
    world, pixels = world_of(encoder, [0, 1, 3, 4], 20)
    episodes = list(EpisodeSampler(world.labels, way=3, shot=1, queries=3, episodes=4, seed=0))

    def read(rows: Sequence[int]) -> torch.Tensor:
        images_read.append(len(rows))
        return pixels[list(rows)]

    learning = torch.nn.ModuleList([encoder.module.requires_grad_(True), head])
    loss = add_gradients(head, world, episodes, 0.1, Finetuning(encoder, read, read))
    assert images_read == [3 * (1 + 3)] * 4
    gradients = {}
    for name, value in learning.named_parameters():
        if value.grad is not None:
            gradients[name] = value.grad.clone()
    learning.zero_grad()
    encoded = encoder.encode(pixels)
    patch = pool_patches(encoded.tokens[:, 1:], encoder.grid, 2)
    tokens = EpisodeTokens(encoded.tokens[:, 0], patch)
    support_y = torch.from_numpy(episodes[0].support_y)
    query_y = torch.from_numpy(episodes[0].query_y)
    logits = []
    for episode in episodes:
        logits.append(head.logits(tokens[episode.support], support_y, tokens[episode.query], 3))
    expected = F.cross_entropy(torch.cat(logits), query_y.repeat(4), label_smoothing=0.1)
    expected.backward()
    assert loss == pytest.approx(expected.item())
    for name, value in learning.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], value.grad, atol=1e-5, rtol=1e-3)
    assert sum(name.startswith("0.") for name in gradients) > 10


def test_fine_tuning_improves_the_encoder_and_repeats_to_the_bit(
    encoder_folder: Path,
) -> None:
    start = load_encoder(encoder_folder).module.state_dict()
    encoder, log = finetune(encoder_folder)
    assert log.best.accuracy > log.epochs[0].accuracy + 10
    state = encoder.module.state_dict()
    changed = [name for name, value in state.items() if not torch.equal(value, start[name])]
    assert any("vision" in name for name in changed)
    assert not any("text" in name for name in changed)  # the text tower took no part
    again, log_again = finetune(encoder_folder)
    assert log_again == log
    state_again = again.module.state_dict()
    assert all(torch.equal(value, state_again[name]) for name, value in state.items())
