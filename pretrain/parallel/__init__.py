"""What crosses ranks: the engines, gathers with exact gradients, and the check that ranks exist.

To add an engine, write its file beside `ddp.py` and list it here, under the name that a checkpoint
and `glscl plan --engine` use. This file imports nothing heavy, so that `glscl --help` may read it.
"""

ENGINES = {
    "ddp": "pretrain.parallel.ddp.DDP",
    "fsdp2": "pretrain.parallel.fsdp2.FSDP2",
    "zero1": "pretrain.parallel.zero.ZeRO",
    "zero2": "pretrain.parallel.zero.ZeRO",
    "zero3": "pretrain.parallel.zero.ZeRO",
}
DEFAULT_ENGINE = "ddp"
