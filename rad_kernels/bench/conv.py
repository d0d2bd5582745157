"""The suites of the convolution: the step, and the weight gradient alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from .. import nn, ops
from ..sketch import VALID_CONV_DRAWS, Sketch
from . import limits
from .cases import ConvCase, conv_cases
from .providers import Checkpointed
from .trial import BASELINE, COMPILED, Setting, Subject, Trial, call, compiled, forget_compiled, training


def conv_sketches(sketches: Sequence[Sketch]) -> list[Sketch]:
    """Those that a convolution takes."""
    return [sketch for sketch in sketches if sketch.draw in VALID_CONV_DRAWS.get(sketch.sampling, ())]


def conv(setting: Setting, cases: Sequence[ConvCase] | None = None) -> Iterator[Trial]:
    """A Conv2d's forward and backward, gradients of input, weight and bias."""
    for case in cases or conv_cases(setting.device, setting.quick):
        yield Trial("conv", str(case), _layer_subjects(case, setting))


def _layer_subjects(case: ConvCase, setting: Setting) -> dict[str, Subject]:
    geometry = case.channels, case.outputs, case.window
    exact = torch.nn.Conv2d(*geometry, padding=case.padding)
    layers: dict[str, tuple[torch.nn.Module, Sketch | None]] = {BASELINE: (exact, None)}
    for sketch in conv_sketches(setting.sketches):
        layers[str(sketch)] = nn.Conv2d(*geometry, padding=case.padding, sketch=sketch), sketch
    x, dy = (_images(setting, *shape) for shape in (case.x_shape, case.y_shape))
    x.requires_grad_()
    subjects = {}
    for name, (layer, used) in layers.items():
        layer.to(setting.device, setting.dtype)
        convert_conv2d_weight_memory_format(layer, _order(setting.device))
        work = limits.conv(case, setting.dtype, used)
        subjects[name] = training(layer, x, dy, list(layer.parameters()), work)
    if setting.peers:
        forget_compiled()
        parameters, work = list(exact.parameters()), limits.conv(case, setting.dtype, None)
        subjects[COMPILED] = training(compiled(exact), x, dy, parameters, work)
        subjects["checkpoint"] = training(Checkpointed(exact), x, dy, parameters, None)
    return subjects


def conv_wgrad(setting: Setting, cases: Sequence[ConvCase] | None = None) -> Iterator[Trial]:
    """The weight gradient of a convolution alone, against torch's."""
    for case in cases or conv_cases(setting.device, setting.quick):
        yield Trial("conv_wgrad", str(case), _wgrad_subjects(case, setting))


def _wgrad_subjects(case: ConvCase, setting: Setting) -> dict[str, Subject]:
    x, dy = (_images(setting, *shape) for shape in (case.x_shape, case.y_shape))
    weight = setting.randn(*case.weight_shape)
    stride, padding, more = [1, 1], [case.padding] * 2, [0, 0]

    def exact() -> torch.Tensor:
        mask = [False, True, False]
        return torch.ops.aten.convolution_backward(
            dy, x, weight, None, stride, padding, stride, False, more, 1, mask
        )[1]

    subjects = {BASELINE: call(exact, limits.conv_weight_gradient(case, setting.dtype, None))}
    for sketch in conv_sketches(setting.sketches):
        by_channel = sketch.sampling != "rows"
        _, saved = ops.conv(x, weight, None, sketch.spec, by_channel, stride, padding, stride, False, more, 1)
        how = sketch.spec, by_channel, stride, padding, stride, False, 1
        run = partial(ops.conv_wgrad, dy, saved, case.x_shape, case.weight_shape, *how)
        subjects[str(sketch)] = call(run, limits.conv_weight_gradient(case, setting.dtype, sketch))
    return subjects


def _order(device: torch.device) -> torch.memory_format:
    """Channels last is what a GPU's tensor cores want; torch's CPU kernels are told nothing."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def _images(setting: Setting, *shape: int) -> torch.Tensor:
    return setting.randn(*shape).contiguous(memory_format=_order(setting.device))
