"""Numbers of half the bits, and whether a device computes in them."""

import torch

HALVES = {"bfloat16": "bf16", "float16": "fp16"}  # and what oneDNN calls them


def has_units(precision: str, device: str) -> bool:
    """Whether a device computes products in half the bits; one that does not puts them together, which takes long."""
    name = f"_is_mkldnn_{HALVES[precision]}_supported"
    return device != "cpu" or not hasattr(torch.ops.mkldnn, name) or bool(getattr(torch.ops.mkldnn, name)())
