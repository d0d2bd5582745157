"""Reaction and diffusion, forward and sampled adjoint: the paper's section 5, with an unbiased gradient."""

from __future__ import annotations

import math
import numbers
import warnings

import torch
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ..sketch import Sketch
from ._checks import SketchWarning, check_sketch, check_tensor
from ._smooth import only_draws

STABLE_RATE = 0.25  # explicit Euler with the five-point Laplacian amplifies noise beyond it


class _Adjoint(Function):
    """The adjoint steps, whose own derivative would need the states that are gone.

    ``token`` ties the result to the inputs in the graph: a second derivative is an error and not zero.
    """

    @staticmethod
    def forward(dlast, dmisfit, token, u, source, target, clock, saved, how):
        return ops.reaction_diffusion_backward(dlast, dmisfit, u, source, target, clock, saved, *how)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("the sampled adjoint cannot be differentiated again")


class _ReactionDiffusion(Function):
    @staticmethod
    def forward(u, source, target, clock, how, key):
        steps, rate, dt, spec = how
        found = ops.reaction_diffusion(u, source, target, clock, steps, rate, dt, spec, key)
        return *found, u.new_empty(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *fields, ctx.how, _ = inputs
        _, _, saved, token = output
        ctx.mark_non_differentiable(saved)
        ctx.save_for_backward(token, *fields, saved)

    @staticmethod
    def backward(ctx, dlast, dmisfit, *_):
        du, dsource = _Adjoint.apply(dlast, dmisfit, *ctx.saved_tensors, ctx.how)
        needs_u, needs_source = ctx.needs_input_grad[:2]
        return du if needs_u else None, dsource if needs_source else None, None, None, None, None


def reaction_diffusion(
    u: Tensor,
    source: Tensor,
    target: Tensor,
    clock: Tensor,
    *,
    steps: int,
    dt: float,
    diffusion: float,
    spacing: float,
    sketch: Sketch,
) -> tuple[Tensor, Tensor]:
    """Explicit Euler steps of ``u_t = D laplace(u) + S(x, t) u`` that keep a sample of every state.

    The boundary keeps its values, and the source is separable:

        u_{t+1} = u_t + dt D lap(u_t) / spacing^2 + dt S_t u_t,  S_t = sum_m clock[t mod period, m] source[m]
        misfit  = dt sum_t (u_{t+1} - T_t)^2,                    T_t = sum_m clock[t mod period, m] target[m]

    both cell by cell. Output and misfit are exact. The adjoint is linear in each state, and states are drawn
    independently of each other, so the gradients by u and source are unbiased (docs/maths.md, reaction and
    diffusion). Nothing is drawn where ``sketch.keep`` is 1, in inference mode, and where a sample would cost
    90 % of the states or more (a SketchWarning says so): there all states are kept.

    Args:
        u: the first state, [..., height, width] with at least 3 x 3 cells; float32 or float64.
        source: [..., modes, height, width], the leading dimensions those of u.
        target: [modes, height, width]. A constant.
        clock: [period, modes]. A constant.
        steps: at least 1.
        dt, diffusion, spacing: numbers; ``dt diffusion / spacing^2`` at most 1/4, where Euler is stable.
        sketch: ``Sketch(keep, "different")``: the share of the inner cells of each state that is kept for
            backward. No other sampling keeps the adjoint unbiased.

    Returns:
        ``(last, misfit)``: the last state and the misfit of each cell, both of u's shape.

    Raises:
        TypeError: an argument is not a strided float32 or float64 tensor, dtypes differ, steps is no integer,
            a number is not real, or sketch is no Sketch.
        ValueError: shapes or devices do not fit together, target or clock needs a gradient, steps or a number
            is out of range, or sketch is of another kind.
        RuntimeError: from backward, for a second derivative.
    """
    check_sketch(sketch)
    _check_sketch(sketch)
    _check_fields(u, source, target, clock)
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an integer, got {steps!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    rate = _rate(dt, diffusion, spacing)
    *leading, height, width = u.shape
    batch = math.prod(leading)
    fields = (u.reshape(batch, height, width), source.reshape(batch, *source.shape[-3:]), target, clock)
    spec, key = sketch.spec, None
    if not _draws(sketch, batch * steps, (height - 2) * (width - 2), u.dtype):
        spec, key = Sketch(1).spec, torch.zeros(1, dtype=torch.int64, device=u.device)
    if only_draws(u, source):
        if key is None:
            ops.draw_key(u.device)
        last, misfit, _ = ops.reaction_diffusion(*fields, steps, rate, float(dt), (), key)
    else:
        how = (steps, rate, float(dt), spec)
        last, misfit, *_ = _ReactionDiffusion.apply(*fields, how, key)
    return last.reshape(u.shape), misfit.reshape(u.shape)


def _draws(sketch: Sketch, rows: int, cells: int, dtype: torch.dtype) -> bool:
    if sketch.is_exact or rows == 0:
        return False
    compiling = torch.compiler.is_compiling()
    if not compiling and torch.is_inference_mode_enabled():
        return False
    if sketch.is_worthwhile(rows, cells, dtype):
        return True
    if not compiling:
        warnings.warn(
            f"sketch {sketch} would save under a tenth of {rows} states of {cells} cells: kept exactly",
            SketchWarning,
            stacklevel=3,
        )
    return False


def _check_sketch(sketch: Sketch) -> None:
    if sketch.is_exact:
        return
    if (sketch.sampling, sketch.draw, sketch.bits) != ("different", "stratified", None):
        raise ValueError(
            "sketch must be of sampling 'different' with the stratified draw and without bits, so that every "
            f"state is drawn on its own and the adjoint stays unbiased; got {sketch}"
        )


def _check_fields(u: Tensor, source: Tensor, target: Tensor, clock: Tensor) -> None:
    named = (("u", u, 2), ("source", source, 3), ("target", target, 3), ("clock", clock, 2))
    for name, value, dims in named:
        check_tensor(name, value)
        if value.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} must have dtype float32 or float64, got {value.dtype}")
        if value.dtype != u.dtype:
            raise TypeError(f"u and {name} must have one dtype, got {u.dtype} and {value.dtype}")
        if value.device != u.device:
            raise ValueError(f"u and {name} must be on one device, got {u.device} and {value.device}")
        if value.dim() < dims:
            raise ValueError(f"{name} must have at least {dims} dimensions, got shape {tuple(value.shape)}")
    *leading, height, width = u.shape
    if height < 3 or width < 3:
        raise ValueError(f"u must have at least 3 x 3 cells, got {height} x {width}")
    modes = source.shape[-3]
    for name, value, want in (
        ("source", source, [*leading, modes, height, width]),
        ("target", target, [modes, height, width]),
        ("clock", clock, [clock.shape[0], modes]),
    ):
        if list(value.shape) != want:
            raise ValueError(
                f"{name} must have shape {want} for u of shape {list(u.shape)} and {modes} modes, "
                f"got {list(value.shape)}"
            )
    if modes == 0 or clock.shape[0] == 0:
        raise ValueError(f"clock must have a period and modes of at least 1, got {list(clock.shape)}")
    for name, value in (("target", target), ("clock", clock)):
        if value.requires_grad:
            raise ValueError(f"{name} is a constant and must not require a gradient, got requires_grad=True")


def _rate(dt: float, diffusion: float, spacing: float) -> float:
    for name, value in (("dt", dt), ("diffusion", diffusion), ("spacing", spacing)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a real number, got {value!r}")
        if not (value > 0 or (value == 0 and name == "diffusion")) or math.isinf(value):
            raise ValueError(f"{name} must be positive and finite (diffusion may be 0), got {value!r}")
    rate = float(dt) * float(diffusion) / float(spacing) ** 2
    if rate > STABLE_RATE:
        raise ValueError(
            f"dt diffusion / spacing^2 must be at most {STABLE_RATE} for stable steps, got {rate:g} from "
            f"dt={dt!r}, diffusion={diffusion!r} and spacing={spacing!r}"
        )
    return rate
