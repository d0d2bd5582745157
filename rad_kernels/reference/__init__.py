"""Random numbers, the saved buffer and the estimates once more, in numpy: the twin that tests compare with.

Written from docs/maths.md, not from csrc/, and vectorised over keys, so that tests can search millions of
them. Nothing in the package imports it. ``spec`` is ``Sketch.spec``: ``(num, den, sampling, draw, bits)``.
Random words, keys and salts are unsigned integers; indices are int64.
"""

from .derivative import derivative_codes, derivative_noise, derivative_range, derivative_step
from .dither import GROUP, bf16_below, decode, dither_noise, encode, group_range, range_encode, step_for
from .norm import lane_sum, norm_input_grad, normalised
from .probability import probability, probability_codes, probability_noise
from .samples import (
    DRAWS,
    ROLES,
    SAMPLINGS,
    TILE,
    Spec,
    drawn,
    fixed_norms,
    hadamard_drawn,
    hadamard_order,
    hadamard_signs,
    index_ranges,
    kept,
    multipliers,
    norm_drawn,
    norm_probability,
    norm_weight,
    permuted,
    project_scale,
    projection,
    sample,
    sampled_length,
    signs,
    strata,
    weights,
)
from .saved import (
    FORMAT_VERSION,
    Layout,
    decoded_values,
    dropout_words,
    estimate,
    pack,
    real_values,
    saved_layout,
    stored_values,
)
from .words import Float64s, Int64s, UInt32s, UInt64s, mulhi64, philox4x32, random_words, word64

__all__ = [
    "DRAWS", "FORMAT_VERSION", "GROUP", "ROLES", "SAMPLINGS", "TILE", "Float64s", "Int64s", "Layout", "Spec",
    "UInt32s", "UInt64s", "bf16_below", "decode", "decoded_values", "derivative_codes", "derivative_noise",
    "derivative_range", "derivative_step", "dither_noise", "drawn", "dropout_words", "encode", "estimate",
    "fixed_norms", "group_range", "hadamard_drawn", "hadamard_order", "hadamard_signs", "index_ranges",
    "kept", "lane_sum", "mulhi64", "multipliers", "norm_drawn", "norm_input_grad", "norm_probability",
    "norm_weight", "normalised", "pack", "permuted", "philox4x32", "probability", "probability_codes",
    "probability_noise", "project_scale", "projection", "random_words", "range_encode", "real_values",
    "sample", "sampled_length", "saved_layout", "signs", "step_for", "stored_values", "strata", "weights",
    "word64",
]  # fmt: skip
