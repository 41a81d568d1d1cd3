"""How much of a device's arithmetic a run uses: operations counted by torch, and the peak."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

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
