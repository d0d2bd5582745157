"""What a convolution may be called with: every error names the argument and its value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..sketch import VALID_CONV_DRAWS, Sketch
from ._checks import autocast_dtype, check_sketch, check_tensor

Sizes = int | Sequence[int]


class Geometry(NamedTuple):
    """What aten::convolution takes beside its tensors."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def shape_read(self, shape: Sequence[int], weight_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of x where the convolution reads it."""
        return ops.shape_read(shape, weight_shape, self.stride, self.padding, self.transposed)

    @property
    def sampled(self) -> tuple:
        """What the sampled weight gradient needs of it."""
        return self.stride, self.padding, self.dilation, self.transposed, self.groups


def check_conv_sketch(sketch: object) -> None:
    """Raises TypeError for what is no Sketch, ValueError for one that no convolution can use."""
    check_sketch(sketch)
    assert isinstance(sketch, Sketch)
    everything = sketch.spec[0] == sketch.spec[1]
    if everything or sketch.draw in VALID_CONV_DRAWS.get(sketch.sampling, ()):
        return
    valid = "; ".join(f"{name!r} with {', '.join(draws)}" for name, draws in VALID_CONV_DRAWS.items())
    raise ValueError(f"sketch {sketch} does not go with a convolution: use sampling {valid}")


def sizes(name: str, value: object, spatial: int, least: int) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if any(isinstance(size, bool) or not isinstance(size, (int, torch.SymInt)) for size in sizes):
        raise TypeError(f"{name} must be an integer or a sequence of them, got {value!r}")
    if len(sizes) not in (1, spatial) or any(size < least for size in sizes):
        raise ValueError(f"{name} must be one integer or {spatial}, each at least {least}; got {value!r}")
    return sizes * spatial if len(sizes) == 1 else sizes


def check_tensors(
    x: object, weight: object, bias: object, spatial: int, groups: object, transposed: bool
) -> None:
    check_tensor("x", x)
    check_tensor("weight", weight)
    assert isinstance(x, Tensor) and isinstance(weight, Tensor)
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"groups must be an integer, got {groups!r}")
    if x.dim() not in (spatial + 1, spatial + 2):
        raise ValueError(f"x must have {spatial + 1} or {spatial + 2} dimensions, got shape {tuple(x.shape)}")
    if weight.dim() != spatial + 2:
        raise ValueError(f"weight must have {spatial + 2} dimensions, got shape {tuple(weight.shape)}")
    channels, (first, second) = x.shape[-spatial - 1], weight.shape[:2]
    if groups < 1 or first % groups or channels != (first if transposed else second * groups):
        raise ValueError(
            f"x with {channels} channels and weight of shape {tuple(weight.shape)} do not fit together "
            f"with groups={groups}"
        )
    outputs = second * groups if transposed else first
    named = [("weight", weight)]
    if bias is not None:
        check_tensor("bias", bias)
        assert isinstance(bias, Tensor)
        if bias.shape != (outputs,):
            raise ValueError(f"bias must have shape [{outputs}], got {tuple(bias.shape)}")
        named.append(("bias", bias))
    for name, value in named:
        if value.device != x.device:
            raise ValueError(f"x and {name} must be on one device, got {x.device} and {value.device}")
        if autocast_dtype(value) != autocast_dtype(x):
            raise TypeError(f"x and {name} must have one dtype, got {x.dtype} and {value.dtype}")


def check_output(x: Tensor, weight: Tensor, geometry: Geometry) -> None:
    stride, padding, dilation, transposed, output_padding, _ = geometry
    for d in range(len(stride)):
        size, window = x.shape[d - len(stride)], dilation[d] * (weight.shape[2 + d] - 1) + 1
        if transposed:
            if output_padding[d] >= max(stride[d], dilation[d]):
                raise ValueError(
                    f"output_padding must be smaller than stride or dilation, got {output_padding} with "
                    f"stride {stride} and dilation {dilation}"
                )
            output = (size - 1) * stride[d] - 2 * padding[d] + window + output_padding[d]
        else:
            output = (size + 2 * padding[d] - window) // stride[d] + 1
        if output < 1:
            raise ValueError(
                f"x of shape {tuple(x.shape)} is too small for weight of shape {tuple(weight.shape)} with "
                f"stride {stride}, padding {padding} and dilation {dilation}"
            )


def padded(
    x: Tensor, weight: Tensor, padding: str, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """``(x, padding)`` of a named padding. Where the two sides differ x grows on the right, as in torch."""
    if padding == "valid":
        return x, (0,) * len(stride)
    if padding != "same":
        raise ValueError(f"padding must be integers, 'same' or 'valid'; got {padding!r}")
    if any(step != 1 for step in stride):
        raise ValueError(f"padding 'same' needs stride 1, got {stride}")
    total = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
    odd = [side for size in reversed(total) for side in (0, size % 2)]
    return F.pad(x, odd) if any(odd) else x, tuple(size // 2 for size in total)
