"""Peak arithmetic of devices, against which a run compares the operations that it computes."""

from __future__ import annotations

import torch

# Dense bfloat16 and float16 operations per second, by a part of the device's name (from NVIDIA's
# data sheets). The first match counts, so that "H100 PCIe" must come before "H100".
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
    """Return the peak half-precision operations per second of a device; None if unknown."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for part, value in _PEAK.items() if part in name), None)
