"""How much of a device's arithmetic a run uses: operations counted by torch, and the peak."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from .config import TrainingConfig

# Dense bfloat16 and float16 operations per second, by a part of the device's name (NVIDIA's data
# sheets).
_PEAK = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}


def peak(device: torch.device, precision: str) -> float | None:
    """Operations per second of the device in half precision; None if unknown."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for part, value in _PEAK.items() if part in name), None)


def flop_counter() -> FlopCounterMode:
    """Make torch's counter, and teach it the CPU's attention, which torch's own table lacks."""
    aten = torch.ops.aten

    def forward(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(
        gradient: torch.Size,
        query: torch.Size,
        key: torch.Size,
        value: torch.Size,
        *_: Any,
        **__: Any,
    ) -> int:
        return int(sdpa_backward_flop_count(gradient, query, key, value))

    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=attention)


class Meter:
    """Speed of the run since the last logged step."""

    def __init__(self, device: torch.device, config: TrainingConfig, samples: int):
        self.batch, self.samples = config.batch.total, samples
        self.peak_flops = peak(device, config.precision)
        self.operations = 0
        self._restart()

    def set_operations(self, counted: int, exact: bool) -> None:
        """Set the floating-point operations of a step, as MFU counts them."""
        # MFU leaves out recomputation: exact accumulation runs the forward pass, a quarter of the
        # operations, a second time.
        self.operations = 3 * counted // 4 if exact else counted

    def add(self, waited: float) -> None:
        """Count a step and the seconds that it waited for its data."""
        self.steps += 1
        self.waited += waited

    def read(self, done: int) -> dict[str, float]:
        """Return the values of metrics.jsonl after `done` steps of the run, and start again."""
        elapsed = time.monotonic() - self.since
        values = {
            "epoch": done * self.batch / self.samples,
            "samples_per_second": self.steps * self.batch / elapsed,
            "data_wait_fraction": self.waited / elapsed,
            "flops_per_second": self.operations * self.steps / elapsed,
        }
        if self.peak_flops:
            values["mfu"] = values["flops_per_second"] / self.peak_flops
        self._restart()
        return values

    def _restart(self) -> None:
        self.since, self.waited, self.steps = time.monotonic(), 0.0, 0
