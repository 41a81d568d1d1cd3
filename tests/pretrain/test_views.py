"""The step as a whole: sharing changes nothing, every option acts, and every loss learns."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.unshared import unshared_features
from data_pipeline.loader import open_loader
from data_pipeline.text import Tokenizer
from pretrain.build import build_model
from pretrain.config import ObjectiveConfig
from pretrain.objectives.completion import completion_loss
from pretrain.task import PretrainTask
from pretrain.views import with_contrasted

COMPLETION = ("global_image", "global_text", "local_image", "local_text")
LOSSES = ("contrastive", "matching", "masked_language", *COMPLETION)


def model_of(config, frames=0):
    torch.manual_seed(0)
    tokenizer = Tokenizer.load(config.data.tokenizer)
    return build_model(config.model, tokenizer, config.data.max_text_length, frames).eval()


def batch_of(config, data, batch=8, **options):
    shared = {"seed": 1, "tokenizer": config.data.tokenizer, "size": 48, "group": 4}
    shared |= {"max_text_length": config.data.max_text_length, "global_batch": batch}
    with open_loader([data], **shared | options) as loader:
        return next(loader)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("negatives", ["hard", "random", "dataset"])
@pytest.mark.parametrize(
    ("kind", "dtype", "bound"),
    # Videos only in float64: the float32 rounding of their longer sums reaches 1.5e-6.
    [
        ("images", torch.float64, 1e-10),
        ("images", torch.float32, 1e-6),
        ("videos", torch.float64, 1e-10),
    ],
    ids=str,
)
def test_sharing_views_changes_no_loss_and_no_gradient(
    config, scenes, clips, kind, negatives, dtype, bound
):
    data, frames = (scenes / "train", None) if kind == "images" else (clips / "train", 3)
    model = model_of(config, frames or 0).to(dtype)
    batch = batch_of(config, data, dataset_negatives=negatives == "dataset", frames=frames)
    task = PretrainTask(ObjectiveConfig(matching_negatives=negatives))
    shared = task.forward(model, batch)
    unshared = task.losses(unshared_features(model, batch, task.config, 32))
    for name in LOSSES:
        difference = abs(getattr(shared, name) - getattr(unshared, name)).item()
        assert difference <= bound * getattr(unshared, name).abs().item(), name
    ours, theirs = gradients(model, shared.total), gradients(model, unshared.total)
    assert ours.keys() == theirs.keys()
    largest = max(gradient.abs().max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        # The gradient of a key's bias is only rounding, so that its scale is that of the model.
        scale = max(gradient.abs().max(), 0.1 * largest)
        assert (ours[name] - gradient).abs().max() <= bound * scale, name


@pytest.mark.slow
def test_a_step_never_waits_for_the_device(config, clips):
    """Reading the value of a fake tensor raises an error."""
    for data, frames in ((config.data.train[0].path, None), (clips / "train", 3)):
        real = batch_of(config, data, frames=frames)
        with FakeTensorMode(allow_non_fake_inputs=False) as fake:
            model = model_of(config, frames or 0).train()
            batch = real.to("cpu")
            for name, value in vars(real).items():
                if isinstance(value, torch.Tensor):
                    setattr(batch, name, fake.from_tensor(value))
            PretrainTask().forward(model, batch).total.backward()


def changed(first, second):
    return {name for name in LOSSES if not torch.equal(getattr(first, name), getattr(second, name))}


@pytest.mark.parametrize(
    ("switch", "affected"),
    [
        ({"directions": "mean"}, COMPLETION),
        ({"completion_targets": "full"}, COMPLETION),
        ({"completion_temperature": 0.1}, COMPLETION),
        ({"matching_negatives": "random"}, ("matching",)),
    ],
    # Sets print in an order that changes with every process, and workers compare names of tests.
    ids=lambda value: str(sorted(value.items() if isinstance(value, dict) else value)),
)
def test_a_switch_changes_its_losses_and_no_others(config, scenes, switch, affected):
    model, batch = model_of(config), batch_of(config, scenes / "train", group=8)
    usual = PretrainTask().forward(model, batch)
    switched = PretrainTask(ObjectiveConfig(**switch)).forward(model, batch)
    assert changed(usual, switched) == set(affected)


def test_sampled_negatives_change_only_the_local_losses(config, scenes):
    model = model_of(config)
    batch = batch_of(config, scenes / "train", local_negatives=1)
    usual = PretrainTask().forward(model, batch)
    sample = ObjectiveConfig(
        local_image_negatives="sample", local_text_negatives="sample", sampled_negatives=1
    )
    sampled = PretrainTask(sample).forward(model, batch)
    assert changed(usual, sampled) == {"local_image", "local_text"}
    assert sampled.local_image < usual.local_image and sampled.local_text < usual.local_text


def test_duplicates_are_negatives_only_if_configured(config, scenes):
    model, batch = model_of(config), batch_of(config, scenes / "train")
    alone = PretrainTask().forward(model, batch)
    batch.identity[1, 0] = batch.identity[0, 0]  # two captions of one image
    options = ObjectiveConfig(matching_negatives="random")
    ignored = PretrainTask(options).forward(model, batch)
    options = ObjectiveConfig(matching_negatives="random", duplicates="negatives")
    counted = PretrainTask(options).forward(model, batch)
    assert ignored.contrastive < alone.contrastive and ignored.global_text < alone.global_text
    assert torch.equal(counted.contrastive, alone.contrastive)


def test_optional_terms_are_off_and_add_to_the_total(config, scenes):
    model, batch = model_of(config), batch_of(config, scenes / "train")
    usual = PretrainTask().forward(model, batch)
    assert usual.intra_modal is None and usual.global_local is None
    more = PretrainTask(ObjectiveConfig(intra_modal=0.5, global_local=2.0)).forward(model, batch)
    expected = usual.total + 0.5 * more.intra_modal + 2 * more.global_local
    assert more.total.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_leaving_a_loss_out_changes_the_gradient(config, scenes, name):
    model, batch = model_of(config), batch_of(config, scenes / "train")
    with_it = gradients(model, PretrainTask().forward(model, batch).total)
    task = PretrainTask(ObjectiveConfig(**{name: 0.0}))
    without = gradients(model, task.forward(model, batch).total)
    assert with_it.keys() == without.keys()
    same = [torch.allclose(with_it[k], without[k], rtol=1e-3, atol=1e-9) for k in with_it]
    assert not all(same)


def test_targets_carry_no_gradient_and_a_detached_recovery_gives_none(config, scenes):
    model, batch = model_of(config), batch_of(config, scenes / "train")
    features = PretrainTask().features(model, batch)
    for name in COMPLETION:
        states = getattr(features, name)
        assert not completion_loss(states.recovered.detach(), states.target, 0.03).requires_grad
        states.target.retain_grad()
        completion_loss(states.recovered, states.target, 0.03).backward(retain_graph=True)
        assert states.target.grad is None or not states.target.grad.any()


def train_completion(model, batch, steps, shuffle):
    """Train only the completion losses on one batch.

    Returns the mean of each over the last quarter of the steps, and its value by chance.
    """
    task = PretrainTask(ObjectiveConfig(local_image=1.0, local_text=1.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator, history = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        features = task.features(model, batch)
        losses, chance = [], []
        for name in COMPLETION:
            states = getattr(features, name)
            target = states.target
            if shuffle:
                target = target[torch.randperm(len(target), generator=generator)]
            losses.append(completion_loss(states.recovered, target, 0.03))
            chance.append(2 * math.log(len(target)))
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        history.append(torch.stack(losses).detach())
    return torch.stack(history[-steps // 4 :]).mean(0).tolist(), chance


@pytest.mark.slow
def test_completion_learns_a_batch_by_heart(config, scenes):
    model, batch = model_of(config), batch_of(config, scenes / "train", batch=4)
    reached, chance = train_completion(model, batch, 120, shuffle=False)
    for value, by_chance in zip(reached, chance, strict=True):
        assert value < 0.25 * by_chance, (reached, chance)


@pytest.mark.slow
def test_completion_learns_nothing_from_targets_that_are_shuffled_at_every_step(config, scenes):
    model, batch = model_of(config), batch_of(config, scenes / "train")
    reached, chance = train_completion(model, batch, 60, shuffle=True)
    for value, by_chance in zip(reached, chance, strict=True):
        assert value > by_chance - 0.2, (reached, chance)


def test_features_are_replaced_by_name_and_unknown_names_are_refused(config, scenes):
    features = PretrainTask().features(model_of(config), batch_of(config, scenes / "train"))
    new = torch.zeros(3)
    replaced = with_contrasted(features, {"temperature": new, "global_text.recovered": new})
    assert replaced.temperature is new and replaced.global_text.recovered is new
    assert replaced.global_text.target is features.global_text.target
    # The last one: this task computes no views.
    for name in ("no_such", "global_text.no_such", "views.masked_text"):
        with pytest.raises(ValueError, match=f"no '{name}'"):
            with_contrasted(features, {name: new})
