"""What users may pass: every error names the argument and its value, before any work is done."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sketch import BITS, DTYPE_NAMES, Sketch

DEVICES = ("cpu", "cuda", "meta")


class SketchWarning(UserWarning):
    """A sketch has no effect where it was asked for."""


def check_tensor(name: str, value: object) -> None:
    """Raises TypeError unless value is an ordinary tensor of a dtype that layers compute in, ValueError on
    another device than they run on."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if type(value).__name__ == "DTensor":
        raise TypeError(
            f"{name} must be an ordinary tensor, got a DTensor: layers that tensor parallelism splits cannot "
            "be sampled; leave them out of convert (exclude=...) or restore() them"
        )
    if value.is_nested:
        raise TypeError(f"{name} must be a strided tensor, got a nested one")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a strided tensor, got layout {value.layout}")
    if value.dtype not in DTYPE_NAMES:
        raise TypeError(f"{name} must have dtype {', '.join(DTYPE_NAMES.values())}; got {value.dtype}")
    if value.device.type not in DEVICES:
        raise ValueError(f"{name} must be on {' or '.join(DEVICES)}, got {value.device}")


def check_sketch(sketch: object) -> None:
    if not isinstance(sketch, Sketch):
        raise TypeError(f"sketch must be a rad_kernels.Sketch, got {sketch!r}")


def check_bits(bits: object, allowed: tuple[int, ...] = BITS) -> None:
    if bits is None:
        return
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"bits must be None or an integer, got {bits!r}")
    if bits not in allowed:
        raise ValueError(f"bits must be None, {', '.join(map(str, allowed))}; got {bits!r}")


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which F.linear would compute on this tensor."""
    device = tensor.device.type
    if tensor.dtype != torch.float64 and device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def check_parameters(
    x: Tensor, weight: Tensor, bias: Tensor | None, weight_name: str = "weight", bias_name: str = "bias"
) -> None:
    check_tensor(weight_name, weight)
    if weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{weight_name} must have shape [outputs, {x.shape[-1]}] for x of shape {tuple(x.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    named = [(weight_name, weight)]
    if bias is not None:
        check_tensor(bias_name, bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"{bias_name} must have shape [{weight.shape[0]}], got {tuple(bias.shape)}")
        named.append((bias_name, bias))
    for name, value in named:
        if value.device != x.device:
            raise ValueError(f"x and {name} must be on one device, got {x.device} and {value.device}")
        if autocast_dtype(value) != autocast_dtype(x):
            raise TypeError(f"x and {name} must have one dtype, got {x.dtype} and {value.dtype}")


def check_x(x: object) -> None:
    check_tensor("x", x)
    if x.dim() == 0:  # type: ignore[attr-defined]
        raise ValueError("x must have at least one dimension, got a scalar tensor")
