"""How much of a device's arithmetic a run uses: operations counted by torch, against the peak in the data sheet."""

from __future__ import annotations

import torch

# Dense bfloat16 and float16 operations a second, by a part of the device's name (NVIDIA's data
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
    """Operations a second that the device can do in half precision; None where that is not known."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for part, value in _PEAK.items() if part in name), None)
