"""What users may pass to the losses."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import check_tensor

REDUCTIONS = ("none", "mean", "sum")
INDEX_DTYPES = (torch.int64, torch.uint8)


def check_how(ignore_index: object, reduction: object, label_smoothing: object) -> None:
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, int | float):
        raise TypeError(f"label_smoothing must be a number, got {label_smoothing!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")


def check_class_weight(name: str, weight: object, classes: int, like: Tensor) -> None:
    if weight is None:
        return
    check_tensor(name, weight)
    assert isinstance(weight, Tensor)
    if weight.shape != (classes,):
        raise ValueError(f"{name} must have shape [{classes}], got {tuple(weight.shape)}")
    if weight.device != like.device:
        raise ValueError(f"x and {name} must be on one device, got {like.device} and {weight.device}")


def check_indices(target: object, shape: tuple[int, ...], x: Tensor) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a Tensor, got {type(target).__name__}")
    if target.dtype not in INDEX_DTYPES:
        raise TypeError(f"target must have dtype int64 or uint8, got {target.dtype}")
    if target.shape != shape:
        raise ValueError(
            f"target must have shape {tuple(shape)} for x of shape {tuple(x.shape)}, "
            f"got {tuple(target.shape)}"
        )
    if target.device != x.device:
        raise ValueError(f"x and target must be on one device, got {x.device} and {target.device}")


def check_loss(
    x: Tensor,
    target: object,
    weight: object,
    ignore_index: object,
    reduction: object,
    label_smoothing: object,
) -> None:
    check_how(ignore_index, reduction, label_smoothing)
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension, got a scalar tensor")
    axis = 0 if x.dim() == 1 else 1
    check_class_weight("weight", weight, x.shape[axis], x)
    if isinstance(weight, Tensor) and weight.dtype != x.dtype:
        raise TypeError(f"x and weight must have one dtype, got {x.dtype} and {weight.dtype}")
    if isinstance(target, Tensor) and target.is_floating_point():
        check_tensor("target", target)
        if target.shape != x.shape:
            raise ValueError(
                f"target must have x's shape {tuple(x.shape)} to be probabilities, got {tuple(target.shape)}"
            )
        if target.device != x.device:
            raise ValueError(f"x and target must be on one device, got {x.device} and {target.device}")
        return
    check_indices(target, x.shape[:axis] + x.shape[axis + 1 :], x)
