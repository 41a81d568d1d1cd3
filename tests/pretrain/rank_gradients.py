"""Run by test_parallel under torchrun: gradients of one global batch, computed by however many ranks there are."""

import json
import sys

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from data_pipeline.collate import Batch
from data_pipeline.loader import open_loader
from data_pipeline.text import Tokenizer
from pretrain.build import build_model
from pretrain.config import RunConfig, parse_config
from pretrain.parallel.selfcheck import start
from pretrain.task import PretrainTask, TaskModel


def keep_targets(batch: Batch, rows: int, limits: list[int], first: int) -> Batch:
    """Keep the first `limits[i]` text targets of the i-th run of `rows` samples; the batch starts with run `first`."""
    width = batch.text_ids.shape[1]

    def kept(positions: torch.Tensor) -> torch.Tensor:
        runs = positions // width // rows + first
        return torch.cat([(runs == run).nonzero()[:, 0][:limit] for run, limit in enumerate(limits)])

    tokens, words = kept(batch.masked_tokens), kept(batch.mlm_positions)
    batch.masked_tokens = batch.masked_tokens[tokens]
    batch.mlm_positions, batch.mlm_labels = batch.mlm_positions[words], batch.mlm_labels[words]
    return batch


def gradients(values: dict, limits: list[int], accelerator: Accelerator) -> dict[str, torch.Tensor]:
    config: RunConfig = parse_config(RunConfig, values, "settings")
    tokenizer = Tokenizer.load(config.data.tokenizer)
    torch.manual_seed(0)
    model = build_model(config.model, tokenizer, config.data.max_text_length)
    rank, world = accelerator.process_index, accelerator.num_processes
    loader = open_loader(
        [source.path for source in config.data.train],
        seed=1,
        global_batch=config.batch.image,
        rank=rank,
        world=world,
        tokenizer=tokenizer,
        size=48,
        group=4,
        max_text_length=config.data.max_text_length,
    )
    with loader:
        batch = keep_targets(next(loader), config.batch.image // len(limits), limits, rank * len(limits) // world)
    task = PretrainTask(config.objectives)
    # float64: what is left is the mathematics, not the rounding of terms that cancel.
    wrapped = accelerator.prepare(TaskModel(task, model.double()))
    # eval mode: the towers' dropout is off, as the comparison needs; DDP still averages gradients.
    wrapped.eval()
    losses = task.losses(wrapped("features", batch), task.counts([batch])[0])
    accelerator.backward(losses.total)
    total = accelerator.reduce(losses.total.detach(), "mean")
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return found | {"loss": total.reshape(1)}


if __name__ == "__main__":
    settings, wanted, out = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    joined = start("fp32", (), ".", None)
    result = gradients(settings, wanted, joined)
    if joined.is_main_process:
        save_file(result, out)
    joined.end_training()
