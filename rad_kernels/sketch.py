"""Sketch: the policy that says what a layer keeps of its activation."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from fractions import Fraction

import torch

# In the order of the enums in csrc/contract/types.h.
SAMPLINGS = ("rows", "same", "different", "tile_rows", "project")
DRAWS = ("stratified", "with_replacement", "without_replacement", "norm", "hadamard")
BITS = (8, 4, 2, 1)
NORM_BITS = (8, 4, 3, 2, 1)  # of normalised values, which no product of matrices reads

# Which draws each sampling of a Linear can use. Tests, docs and error messages read this table.
VALID_DRAWS: dict[str, tuple[str, ...]] = {
    "rows": ("stratified", "without_replacement", "with_replacement", "norm"),
    "same": ("stratified", "without_replacement", "with_replacement"),
    "different": ("stratified", "with_replacement"),
    "tile_rows": ("stratified", "without_replacement", "with_replacement"),
    "project": ("stratified", "hadamard"),  # signs, not indices: independent ones, or those of a transform
}

# The same of convolutions, whose rows are positions.
VALID_CONV_DRAWS: dict[str, tuple[str, ...]] = {
    "rows": ("stratified", "without_replacement", "with_replacement"),
    "same": ("stratified", "without_replacement", "with_replacement"),
    "different": ("stratified", "with_replacement"),
}

# Samplings whose stored values are sums, which dither would only blur.
WITHOUT_BITS = ("project",)

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}

# A pack that would cost this share of the exact bytes or more is not worth its noise: exact is kept.
WORTHWHILE = Fraction(9, 10)


def is_worthwhile(cost: int, exact: int) -> bool:
    """Whether keeping ``cost`` bytes instead of ``exact`` ones pays; both may be symbolic."""
    return cost * WORTHWHILE.denominator < exact * WORTHWHILE.numerator


@dataclass(frozen=True)
class Sketch:
    """What is kept of an activation ``x`` [rows, features] for the weight gradient.

    Args:
        keep: share of the entries that is kept, in (0, 1]. ``keep=1`` without bits is exact.
        sampling: which entries share a sample. ``"rows"``: whole rows (tokens), column-row sampling;
            ``"same"``: one set of features for all rows; ``"different"``: each row its own features (these
            two are the paper's, Oktay et al. 2021, section 4.1); ``"tile_rows"``: each block of 128 features
            its own rows; ``"project"``: the paper's random projection onto ``keep * features`` signs.
        draw: how indices are drawn. ``"stratified"``: one per stratum; ``"without_replacement"``: distinct;
            ``"with_replacement"``: the paper's; ``"norm"``: rows with probability by their norm, which
            stores indices and weights; ``"hadamard"`` (projections): a subsampled Hadamard transform, faster
            and less noisy than independent signs.
        bits: ``None``: values are kept in their own dtype. 8, 4, 2 or 1: as subtractively dithered codes,
            in groups of 64 with an offset and a step each. With ``keep=1`` every value is kept as a code,
            whatever the sampling.

    Every setting gives an unbiased weight gradient; docs/maths.md has the variances.

    Raises:
        TypeError: keep is not a real number, sampling or draw is not a string, or bits is not an integer.
        ValueError: keep is outside (0, 1], or a name, a number of bits or a combination is unknown.
    """

    keep: float
    sampling: str = "rows"
    draw: str = "stratified"
    bits: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.keep, bool) or not isinstance(self.keep, numbers.Real):
            raise TypeError(f"keep must be a real number in (0, 1], got {self.keep!r}")
        if not 0 < self.keep <= 1:  # NaN included
            raise ValueError(f"keep must be in (0, 1], got {self.keep!r}")
        object.__setattr__(self, "keep", float(self.keep))
        for name, value, known in (("sampling", self.sampling, SAMPLINGS), ("draw", self.draw, DRAWS)):
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a string, one of {', '.join(known)}; got {value!r}")
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        if self.draw not in VALID_DRAWS[self.sampling]:
            draws = " or ".join(map(repr, VALID_DRAWS[self.sampling]))
            samplings = " or ".join(repr(name) for name in SAMPLINGS if self.draw in VALID_DRAWS[name])
            raise ValueError(
                f"draw {self.draw!r} does not go with sampling {self.sampling!r}: "
                f"use draw {draws}, or sampling {samplings}"
            )
        if self.bits is not None:
            if isinstance(self.bits, bool) or not isinstance(self.bits, int):
                raise TypeError(f"bits must be None or an integer, got {self.bits!r}")
            if self.bits not in BITS:
                raise ValueError(f"bits must be None, {', '.join(map(str, BITS))}; got {self.bits!r}")
            if self.sampling in WITHOUT_BITS and self.keep < 1:
                samplings = " or ".join(repr(name) for name in SAMPLINGS if name not in WITHOUT_BITS)
                raise ValueError(
                    f"bits={self.bits} does not go with sampling {self.sampling!r}: "
                    f"use bits=None, or sampling {samplings}"
                )
        fraction = Fraction(self.keep).limit_denominator(10**6)
        if fraction == 0:
            raise ValueError(f"keep must be at least 1e-6, got {self.keep!r}")
        # With everything kept there is nothing to draw, so one spec stands for all.
        sampling, draw = (self.sampling, self.draw) if fraction < 1 else ("rows", "stratified")
        spec = (
            fraction.numerator,
            fraction.denominator,
            SAMPLINGS.index(sampling),
            DRAWS.index(draw),
            self.bits or 0,
        )
        object.__setattr__(self, "_spec", spec)

    @property
    def spec(self) -> tuple[int, ...]:
        """``(num, den, sampling, draw, bits)``: how ops take a sketch; ``keep = num / den``."""
        return self._spec  # type: ignore[attr-defined]

    @property
    def is_exact(self) -> bool:
        """True when everything is kept as it is, so that torch's own path serves."""
        return self.spec[0] == self.spec[1] and self.bits is None

    def kept(self, n: int) -> int:
        """How many of ``n`` rows or features are kept: ``ceil(n * num / den)``."""
        num, den = self.spec[:2]
        return (n * num + den - 1) // den

    def is_worthwhile(self, rows: int, features: int, dtype: torch.dtype) -> bool:
        """Whether the pack of a [rows, features] activation costs under 90 % of keeping it."""
        if self.is_exact:
            return False
        return is_worthwhile(saved_nbytes(rows, features, dtype, self), rows * features * dtype.itemsize)

    @classmethod
    def parse(cls, text: str) -> Sketch:
        """A sketch from ``"sampling:keep"``, then optionally ``":draw"`` and ``":4bit"``: ``str``'s inverse.

        >>> Sketch.parse("rows:0.1:4bit")
        Sketch(keep=0.1, sampling='rows', draw='stratified', bits=4)
        """
        if not isinstance(text, str):
            raise TypeError(f"a sketch must be a string like 'rows:0.1', got {text!r}")
        sampling, *rest = text.split(":")
        bits = None
        if rest and rest[-1].endswith("bit") and rest[-1][:-3].isdecimal():
            bits = int(rest.pop()[:-3])
        if not 1 <= len(rest) <= 2:
            raise ValueError(
                f"a sketch must look like 'rows:0.1' or 'same:0.1:with_replacement:4bit', got {text!r}"
            )
        try:
            keep = float(rest[0])
        except ValueError:
            raise ValueError(f"keep must be a number in (0, 1], got {rest[0]!r} in {text!r}") from None
        return cls(keep, sampling, rest[1] if len(rest) == 2 else "stratified", bits)

    def __str__(self) -> str:
        draw = "" if self.draw == "stratified" else f":{self.draw}"
        bits = "" if self.bits is None else f":{self.bits}bit"
        return f"{self.sampling}:{self.keep!r}{draw}{bits}"

    def to_dict(self) -> dict[str, object]:
        """The constructor's arguments, for JSON: ``Sketch(**sketch.to_dict()) == sketch``."""
        return {"keep": self.keep, "sampling": self.sampling, "draw": self.draw, "bits": self.bits}


PLANE_ALIGN = 128
TRAILER_BYTES = 64


def saved_nbytes(rows: int, features: int, dtype: torch.dtype, sketch: Sketch | tuple[int, ...]) -> int:
    """Bytes of the one buffer that is kept for a [rows, features] activation.

    ``sketch`` may be its ``spec``; integers may be symbolic. This is csrc/core/layout.h in a form that
    torch.compile can trace; a test holds the two together.

    Raises:
        TypeError: dtype is not float32, float64, bfloat16 or float16.
    """
    if dtype not in DTYPE_NAMES:
        raise TypeError(f"dtype must be one of {', '.join(DTYPE_NAMES.values())}; got {dtype}")
    num, den, sampling, draw, bits = sketch.spec if isinstance(sketch, Sketch) else sketch
    if SAMPLINGS[sampling] in ("rows", "tile_rows"):
        lines, stored = (rows * num + den - 1) // den, features
    else:
        lines, stored = rows, (features * num + den - 1) // den
    if bits:
        groups = lines * ((stored + 63) // 64)
        planes = [lines * ((stored * bits + 31) // 32 * 4), groups * dtype.itemsize, groups * 2]
    else:
        planes = [lines * stored * dtype.itemsize]
    if DRAWS[draw] == "norm":
        planes += [lines * 8, lines * 4]
    return sum((plane + PLANE_ALIGN - 1) // PLANE_ALIGN * PLANE_ALIGN for plane in planes) + TRAILER_BYTES
