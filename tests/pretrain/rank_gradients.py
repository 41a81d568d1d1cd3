"""Gradients of global batches on any number of ranks; for test_rank_gradients."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from data_pipeline.collate import Batch
from data_pipeline.loader import open_loader
from data_pipeline.text import Tokenizer
from pretrain.accumulate import accumulate_exactly, accumulate_plainly
from pretrain.build import build_model
from pretrain.config import RunConfig
from pretrain.config_file import parse_config
from pretrain.objectives import OBJECTIVES
from pretrain.parallel.engines import Engine
from pretrain.parallel.selfcheck import start
from pretrain.protocols import TaskModel
from pretrain.task import PretrainTask
from tests.pretrain.toy_objective import TOY


def keep_targets(batch: Batch, rows: int, limits: list[int], first: int) -> Batch:
    """Keep the first `limits[i]` text targets of the i-th run of `rows` samples.

    The batch starts with run `first`.
    """
    width = batch.text_ids.shape[1]

    def rows_to_keep(positions: torch.Tensor) -> torch.Tensor:
        runs = positions // width // rows + first
        positions_kept = []
        for run, limit in enumerate(limits):
            positions_kept.append((runs == run).nonzero()[:, 0][:limit])
        return torch.cat(positions_kept)

    tokens, words = rows_to_keep(batch.masked_tokens), rows_to_keep(batch.mlm_positions)
    batch.masked_tokens = batch.masked_tokens[tokens]
    batch.mlm_positions, batch.mlm_labels = batch.mlm_positions[words], batch.mlm_labels[words]
    return batch


def gradients(
    values: dict, limits: list[int], engine: Engine, part: tuple[int, int] | None = None
) -> dict[str, torch.Tensor]:
    """Compute the gradient of the first step, and its loss.

    `limits` cut the text targets of images, run by run (empty: none are cut). `part` (rank, world)
    makes one process take only the samples that this rank of this world would have. A key `toy` in
    the settings adds the toy objective.
    """
    values = dict(values)
    added = (TOY,) if values.pop("toy", False) else ()
    config: RunConfig = parse_config(RunConfig, values, "settings")
    tokenizer = Tokenizer.load(config.data.tokenizer)
    torch.manual_seed(0)
    video = config.data.video
    model = build_model(
        config.model, tokenizer, config.data.max_text_length, video.frames if video else 0
    )
    accelerator, objectives = engine.accelerator, config.objectives
    rank, world = part or (accelerator.process_index, accelerator.num_processes)
    sampled = objectives.sampled_negatives if objectives.samples_negatives else None
    shared = {
        "seed": 1,
        "rank": rank,
        "world": world,
        "tokenizer": tokenizer,
        "size": 48,
        "group": 4,
        "max_text_length": config.data.max_text_length,
        "micro_batches": config.micro_batches,
        "dataset_negatives": objectives.matching_negatives == "dataset",
        "local_negatives": sampled,
    }
    batches = []
    if config.batch.image:
        folders = [source.path for source in config.data.train]
        with open_loader(folders, global_batch=config.batch.image, **shared) as loader:
            batches += [next(loader) for _ in range(config.micro_batches)]
        if limits:
            first = rank * len(limits) // world
            batches[0] = keep_targets(batches[0], config.batch.image // len(limits), limits, first)
    if video:
        folders = [source.path for source in video.train]
        with open_loader(
            folders, global_batch=config.batch.video, frames=video.frames, **shared
        ) as loader:
            batches += [next(loader) for _ in range(config.micro_batches)]
    task = PretrainTask(objectives, objectives=(*OBJECTIVES, *added))
    # float64, so that differences show the mathematics and not the rounding of terms that cancel.
    engine.prepare(
        TaskModel(task, model.double()), model, torch.optim.SGD(model.parameters()), 1, None
    )
    # Eval mode turns the towers' dropout off, as the comparison needs; DDP still averages
    # gradients.
    engine.wrapped.eval()
    counts, shares = task.counts(batches), [1 / config.micro_batches] * len(batches)
    accumulate = accumulate_exactly if config.accumulates_exactly else accumulate_plainly
    losses, _ = accumulate(task, engine, batches, counts, shares, torch.manual_seed)
    total = sum(task.weighted(parts).detach() for parts in losses) / config.micro_batches
    gradient = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return gradient | {"loss": accelerator.reduce(total.reshape(1), "mean")}


def save_gradients(cases: list[tuple[dict, list[int]]], folder: Path) -> None:
    """Compute every case on this rank; rank 0 writes NUMBER.safetensors."""
    engine = start("fp32", (), ".", None)
    for number, (settings, limits) in enumerate(cases):
        result = gradients(settings, limits, engine)
        if engine.accelerator.is_main_process:
            save_file(result, folder / f"{number}.safetensors")
