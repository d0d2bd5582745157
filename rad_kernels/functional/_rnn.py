from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ..ops.rnn import CELLS, NEEDS_BIAS, NEEDS_WEIGHT_HH, NEEDS_WEIGHT_IH, NEEDS_X, Layer, Spec
from ..sketch import Sketch, is_worthwhile
from ._activation import dropout as dropout_of
from ._checks import SketchWarning, autocast_dtype, check_bits, check_sketch, check_tensor

EXACT_SPEC = (1, 1, 0, 0, 0)
FEW_BITS, LONG = 4, 64  # four bits over more steps than this: relative variance .87 was measured at 784


class _RecurrentGrad(Function):
    """All gradients of one layer. ``token`` ties them to the layer's inputs in the graph; weights come in
    lists, because compiled code hands a context to a function with a variable number of arguments."""

    @staticmethod
    def forward(dy, dh, dc, saved, token, x, weights_ih, weights_hh, layer, needs):
        return tuple(ops.rnn_backward(dy, dh, dc, saved, x, weights_ih, weights_hh, layer, needs))

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("the gradient of a sampled recurrent layer cannot be differentiated again")


class _Recurrent(Function):
    """One layer, all its directions. Parameters are weight_ih, weight_hh and, or not, both biases of each;
    they arrive as they are and are cast inside, so that only they and ``saved`` are retained."""

    @staticmethod
    def forward(x, h, c, layer, sequence, dtype, *parameters):
        each = len(parameters) // layer.directions
        cast = [p.to(dtype) for p in parameters]
        biases = [b for d in range(layer.directions) for b in cast[d * each + 2 : (d + 1) * each]]
        y, h_n, c_n, saved = ops.rnn(
            x.to(dtype),
            h.to(dtype),
            None if c is None else c.to(dtype),
            cast[::each],
            cast[1::each],
            biases,
            layer,
            sequence,
        )
        return y, h_n, c_n, saved, x.new_empty(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, h, c, layer, ctx.sequence, ctx.dtype, *parameters = inputs
        *_, saved, token = output
        each = len(parameters) // layer.directions
        needs_x, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[6:]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(saved)
        keeps_x = not layer.spec_x and any(needs[::each])
        weights_ih = parameters[::each] if needs_x else []
        ctx.save_for_backward(saved, token, x if keeps_x else None, *weights_ih, *parameters[1::each])
        ctx.layer, ctx.each = layer, each
        ctx.dtypes = [None if t is None else t.dtype for t in (x, h, c, *parameters)]

    @staticmethod
    def backward(ctx, dy, dh, dc, *_):
        saved, token, x, *weights = ctx.saved_tensors
        layer, each = ctx.layer, ctx.each
        needs, dtypes = ctx.needs_input_grad, ctx.dtypes
        if not ctx.sequence:
            dy = None
        if layer.cell != "lstm":
            dc = None
        if dy is None and dh is None and dc is None:
            return (None,) * len(needs)
        wanted = NEEDS_X if needs[0] else 0
        for place, bit in enumerate((NEEDS_WEIGHT_IH, NEEDS_WEIGHT_HH, NEEDS_BIAS, NEEDS_BIAS)[:each]):
            if any(needs[6 + place :: each]):
                wanted |= bit
        cast = [w.to(ctx.dtype) for w in weights]
        x = None if x is None else x.to(ctx.dtype)
        weights_ih, weights_hh = cast[: -layer.directions], cast[-layer.directions :]
        made = _RecurrentGrad.apply(dy, dh, dc, saved, token, x, weights_ih, weights_hh, layer, wanted)
        states = [made[i] if needs[i] else None for i in range(3)]
        slots = [made[3 + 4 * d + i] for d in range(layer.directions) for i in range(each)]
        parameters = [g if needed else None for g, needed in zip(slots, needs[6:], strict=True)]
        grads = [None if g is None else g.to(t) for g, t in zip([*states, *parameters], dtypes, strict=True)]
        return (*grads[:3], None, None, None, *grads[3:])


Outputs = tuple[Tensor, Tensor, Tensor | None]  # y, h_n, c_n


def _exact(
    x: Tensor, h: Tensor, c: Tensor | None, layer: Layer, parameters: Sequence[Tensor], bias: bool
) -> Outputs:
    """torch's own layer."""
    run: Any = {
        "relu": torch._VF.rnn_relu,
        "tanh": torch._VF.rnn_tanh,
        "lstm": torch._VF.lstm,
        "gru": torch._VF.gru,
    }[layer.cell]
    hx = h if c is None else (h, c)
    options = bias, 1, 0.0, True, layer.directions == 2
    if layer.batch_sizes:
        result = run(x, torch.tensor(layer.batch_sizes), hx, parameters, *options)
    else:
        result = run(x, hx, parameters, *options, False)
    return result if c is not None else (*result, None)


def _planned(layer: Layer, sketch: Sketch, dtype: torch.dtype, needs_ih: bool, needs_hh: bool) -> Layer:
    """The layer with what is kept of its two inputs: nothing, a sketch, or all where that costs no more."""
    rows = sum(layer.batch_sizes) if layer.batch_sizes else layer.steps * layer.batch
    candidate = layer._replace(spec_x=sketch.spec if needs_ih else (), spec_h=sketch.spec if needs_hh else ())

    def chosen(what: str, features: int, spec: Spec, exact: Spec) -> Spec:
        if not spec or sketch.is_exact:
            return exact if spec else ()
        cost, whole = ops.rnn_packs_nbytes(candidate, features, dtype, spec), rows * features * dtype.itemsize
        if is_worthwhile(cost, whole):
            return spec
        if not torch.compiler.is_compiling():
            warnings.warn(
                f"sketch {sketch} would keep {cost} of the {whole} bytes of a recurrent layer's {what} "
                f"[{rows}, {features}]: kept exactly",
                SketchWarning,
                stacklevel=5,
            )
        return exact

    return candidate._replace(
        spec_x=chosen("input", layer.inputs, candidate.spec_x, ()),
        spec_h=chosen("hidden states", layer.hidden, candidate.spec_h, EXACT_SPEC),
    )


def _layer(
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    layer: Layer,
    parameters: Sequence[Tensor],
    sketch: Sketch,
    bias: bool,
    sequence: bool,
) -> Outputs:
    each = len(parameters) // layer.directions
    dtype = autocast_dtype(x)
    needs_ih, needs_hh = (any(w.requires_grad for w in parameters[i::each]) for i in range(2))
    layer = _planned(layer, sketch, dtype, needs_ih, needs_hh)
    if CELLS[layer.cell][0] == 1 and layer.spec_h == EXACT_SPEC:
        return _exact(x, h, c, layer, parameters, bias)
    if not torch.compiler.is_compiling():
        tensors = [t for t in (x, h, c, *parameters) if t is not None]
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
            ops.draw_keys(x.device, layer.keys)
            return _exact(x, h, c, layer, parameters, bias)
    y, h_n, c_n, *_ = _Recurrent.apply(x, h, c, layer, sequence, dtype, *parameters)
    return y, h_n, c_n if c is not None else None


def _check_sequence(x: Tensor, batch_sizes: Sequence[int] | None) -> tuple[int, int]:
    """(steps, batch)"""
    check_tensor("x", x)
    if batch_sizes is None:
        if x.dim() != 3:
            raise ValueError(f"x must be [steps, batch, inputs], got shape {tuple(x.shape)}")
        return x.shape[0], x.shape[1]
    if x.dim() != 2 or sum(batch_sizes) != x.shape[0]:
        raise ValueError(
            f"x must be [{sum(batch_sizes)}, inputs] with these batch_sizes, got {tuple(x.shape)}"
        )
    before = list(batch_sizes[:1]) + list(batch_sizes[:-1])
    if not batch_sizes or any(n <= 0 or n > m for n, m in zip(batch_sizes, before, strict=True)):
        raise ValueError(f"batch_sizes must be positive and descend, got {list(batch_sizes)}")
    return len(batch_sizes), batch_sizes[0]


def _check_arguments(
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    cell: str,
    num_layers: int,
    bias: bool,
    bidirectional: bool,
    batch: int,
) -> int:
    """The hidden size, after every shape, dtype and device was compared."""
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}; got {cell!r}")
    if len(states) != (2 if cell == "lstm" else 1):
        raise ValueError(
            f"hx must be {'(h_0, c_0)' if cell == 'lstm' else 'h_0'} for {cell}, got {len(states)} tensors"
        )
    directions, each = 2 if bidirectional else 1, 4 if bias else 2
    if len(weights) != num_layers * directions * each:
        raise ValueError(f"weights must be {num_layers * directions * each} tensors, got {len(weights)}")
    check_tensor("weights[1]", weights[1])
    hidden, gates = weights[1].shape[-1], CELLS[cell][0]
    named: list[tuple[str, Tensor, tuple[int, ...]]] = [
        (f"hx[{i}]", s, (num_layers * directions, batch, hidden)) for i, s in enumerate(states)
    ]
    for i, weight in enumerate(weights):
        inputs = x.shape[-1] if i < directions * each else directions * hidden
        shapes: list[tuple[int, ...]] = [
            (gates * hidden, inputs),
            (gates * hidden, hidden),
            (gates * hidden,),
            (gates * hidden,),
        ]
        named.append((f"weights[{i}]", weight, shapes[i % each]))
    for name, value, shape in named:
        check_tensor(name, value)
        if tuple(value.shape) != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(value.shape)}")
        if value.device != x.device:
            raise ValueError(f"x and {name} must be on one device, got {x.device} and {value.device}")
        if autocast_dtype(value) != autocast_dtype(x):
            raise TypeError(f"x and {name} must have one dtype, got {x.dtype} and {value.dtype}")
    return hidden


def recurrent(
    x: Tensor,
    hx: Tensor | tuple[Tensor, Tensor],
    weights: Sequence[Tensor],
    cell: str,
    sketch: Sketch,
    bits: int | None = 8,
    *,
    num_layers: int = 1,
    bias: bool = True,
    dropout: float = 0.0,
    bidirectional: bool = False,
    batch_sizes: Sequence[int] | None = None,
    return_sequence: bool = True,
) -> tuple[Tensor | None, Tensor | tuple[Tensor, Tensor]]:
    """A recurrent network in training that keeps sketches of its inputs and hidden states, and the
    derivatives of its gates as codes.

    Outputs are torch's to rounding; gradients are unbiased (docs/maths.md, recurrent layers). Each step has
    its own sample. torch's own path is taken with ``sketch.keep`` 1 and ``bits`` None, for an empty x, in
    inference mode, and for relu and tanh where the sketch would keep 90 % of the hidden states' bytes or
    more. Gradients cannot be differentiated again.

    Args:
        x: [steps, batch, inputs], any strides; or [rows, inputs] with ``batch_sizes``. float32, float64,
            bfloat16 or float16; cast to autocast's dtype, which outputs then have.
        hx: h_0 [num_layers * directions, batch, hidden]; for an lstm ``(h_0, c_0)``.
        weights: as torch.nn.LSTM's: of each layer and direction weight_ih, weight_hh and, with ``bias``,
            bias_ih and bias_hh.
        cell: "relu", "tanh", "lstm" or "gru".
        sketch: what is kept of each layer's input and hidden states.
        bits: 8, 4, 2 or 1: of the codes of derivatives; None: they are kept in x's dtype. relu: always one
            exact bit. 4 or fewer over more than 64 steps warn.
        dropout: probability for the outputs of all layers but the last.
        batch_sizes: of a packed sequence.
        return_sequence: False gives None in place of y, which is then never allocated.

    Returns:
        ``(y [steps, batch, directions * hidden] or [rows, directions * hidden], h_n)``; for an lstm
        ``(y, (h_n, c_n))``.

    Raises:
        TypeError: a tensor is not a strided floating one, dtypes differ, sketch is no Sketch, bits no
            integer.
        ValueError: shapes, devices or numbers do not fit together, or cell is unknown.
    """
    check_sketch(sketch)
    check_bits(bits)
    steps, batch = _check_sequence(x, batch_sizes)
    states = list(hx) if isinstance(hx, (tuple, list)) else [hx]
    weights = list(weights)
    hidden = _check_arguments(x, states, weights, cell, num_layers, bias, bidirectional, batch)
    directions = 2 if bidirectional else 1
    compiling = torch.compiler.is_compiling()
    if bits is not None and bits <= FEW_BITS and cell != "relu" and not compiling and steps > LONG:
        warnings.warn(
            f"bits={bits} over {steps} steps: the noise of the factors multiplies along them; use 8",
            SketchWarning,
            stacklevel=3,
        )
    inference = not compiling and torch.is_inference_mode_enabled()
    exact = sketch.is_exact and (bits is None or cell == "relu")
    plain = inference or exact or x.numel() == 0 or x.device.type == "meta"
    finals: list[list[Tensor]] = [[] for _ in states]
    each = directions * (4 if bias else 2)
    for number in range(num_layers):
        span = slice(number * directions, (number + 1) * directions)
        h, c = states[0][span], states[1][span] if cell == "lstm" else None
        parameters = weights[number * each : (number + 1) * each]
        sizes = tuple(batch_sizes or ())
        layer = Layer(cell, steps, batch, x.shape[-1], hidden, directions, sizes, bits or 0, (), ())
        last = number == num_layers - 1
        if plain:
            x, *after = _exact(x, h, c, layer, parameters, bias)
        else:
            x, *after = _layer(x, h, c, layer, parameters, sketch, bias, return_sequence or not last)
        for final, state in zip(finals, after, strict=False):
            final.append(state)  # type: ignore[arg-type]
        if dropout > 0 and not last:
            x = dropout_of(x, dropout)
    h_n, *c_n = (f[0] if num_layers == 1 else torch.cat(f) for f in finals)
    return (x if return_sequence else None), (h_n, *c_n) if c_n else h_n  # type: ignore[return-value]
