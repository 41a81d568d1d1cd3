"""Exact accumulation refuses an objective that it could not learn, instead of only logging it."""

import dataclasses

import pytest
import torch

from data_pipeline.loader import open_loader
from data_pipeline.text import Tokenizer
from pretrain.accumulate import accumulate_exactly
from pretrain.build import build_model
from pretrain.objectives import OBJECTIVES
from pretrain.optim import build_optimizer
from pretrain.parallel.selfcheck import start
from pretrain.protocols import TaskModel
from pretrain.task import PretrainTask
from tests.pretrain.toy_objective import CONTRASTS, TOY


def accumulate(config, objective):
    """Accumulate two micro-batches of 8 images exactly, with an objective beside the usual ones."""
    tokenizer, length = Tokenizer.load(config.data.tokenizer), config.data.max_text_length
    model = build_model(config.model, tokenizer, length)
    options = {"seed": 1, "tokenizer": tokenizer, "max_text_length": length, "size": 48, "group": 4}
    folders = [source.path for source in config.data.train]
    with open_loader(folders, global_batch=16, micro_batches=2, **options) as loader:
        batches = [next(loader), next(loader)]
    task = PretrainTask(objectives=(*OBJECTIVES, objective))
    engine = start("fp32", (), ".", None)
    optimizer = build_optimizer(model, config.optimizer)
    engine.prepare(TaskModel(task, model), model, optimizer, 8, None)
    counts = task.counts(batches)
    return accumulate_exactly(task, engine, batches, counts, [0.5, 0.5], torch.manual_seed)


def test_an_added_objective_is_logged_like_the_others(config):
    losses, _ = accumulate(config, TOY)
    assert [list(parts)[-1] for parts in losses] == ["masked_language"] * 2
    assert all(parts["toy"] > 0 and not parts["toy"].requires_grad for parts in losses)


def test_an_optional_objective_is_neither_computed_nor_logged_without_a_weight(config):
    optional = dataclasses.replace(TOY, weight=0.0, contrasts=(), reads_views=False)
    assert "toy" not in PretrainTask(objectives=(*OBJECTIVES, optional)).loss_names
    weighted = dataclasses.replace(optional, weight=0.1)
    assert "toy" in PretrainTask(objectives=(*OBJECTIVES, weighted)).loss_names


def test_an_objective_that_does_not_name_what_it_learns_through_is_refused(config):
    forgetful = dataclasses.replace(TOY, contrasts=("contrastive_text", "temperature"))
    with pytest.raises(ValueError, match=r"features\.views\.dropped_image, which no objective"):
        accumulate(config, forgetful)


def test_a_feature_that_does_not_exist_is_refused(config):
    for name in ("views.dropt_image", "no_such_feature"):
        mistaken = dataclasses.replace(TOY, contrasts=(*CONTRASTS, name))
        with pytest.raises((AttributeError, ValueError), match=name.split(".")[-1]):
            accumulate(config, mistaken)


@pytest.mark.parametrize("name", ["matching_logits", "masked_language_logits"])
def test_a_contrasted_feature_that_is_not_joined_is_refused(config, name):
    lost = dataclasses.replace(TOY, contrasts=(*CONTRASTS, name))
    with pytest.raises(ValueError, match=f"names {name} .* does not join"):
        accumulate(config, lost)
