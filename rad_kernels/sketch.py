"""Sketch: the policy that says what a layer keeps of its activation."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from fractions import Fraction

import torch

SAMPLINGS = ("rows", "same", "different")
DRAWS = ("stratified", "with_replacement")

# Which draws each sampling of a Linear can use. Tests, docs and error messages read this table.
VALID_DRAWS: dict[str, tuple[str, ...]] = {
    "rows": ("stratified", "with_replacement"),
    "same": ("stratified", "with_replacement"),
    "different": ("stratified", "with_replacement"),
}

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}

# A pack that would cost this share of the exact bytes or more is not worth its noise: exact is kept.
WORTHWHILE = Fraction(9, 10)


@dataclass(frozen=True)
class Sketch:
    """What is kept of an activation ``x`` [rows, features] for the weight gradient.

    Args:
        keep: share of the entries that is kept, in (0, 1]. ``keep=1`` is exact.
        sampling: which entries share a sample. ``"rows"``: whole rows (tokens), column-row sampling;
            ``"same"``: one set of features for all rows; ``"different"``: each row its own features
            (the last two are the paper's, Oktay et al. 2021, section 4.1).
        draw: how indices are drawn. ``"stratified"``: one per stratum, without duplicates;
            ``"with_replacement"``: the paper's.
        bits: ``None``: values are kept in their own dtype.

    Every setting gives an unbiased weight gradient; docs/maths.md has the variances.

    Raises:
        TypeError: keep is not a real number, or sampling or draw is not a string.
        ValueError: keep is outside (0, 1], or a name or combination is unknown.
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
            allowed = ", ".join(VALID_DRAWS[self.sampling])
            raise ValueError(
                f"draw {self.draw!r} does not go with sampling {self.sampling!r}: use one of {allowed}"
            )
        if self.bits is not None:
            raise ValueError(f"bits must be None, got {self.bits!r}")
        fraction = Fraction(self.keep).limit_denominator(10**6)
        if fraction == 0:
            raise ValueError(f"keep must be at least 1e-6, got {self.keep!r}")
        spec = (
            fraction.numerator,
            fraction.denominator,
            SAMPLINGS.index(self.sampling),
            DRAWS.index(self.draw),
        )
        object.__setattr__(self, "_spec", spec)

    @property
    def spec(self) -> tuple[int, ...]:
        """``(num, den, sampling, draw)``: how ops take a sketch; ``keep = num / den``."""
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
        exact = rows * features * dtype.itemsize
        return (
            saved_nbytes(rows, features, dtype, self) * WORTHWHILE.denominator < exact * WORTHWHILE.numerator
        )

    @classmethod
    def parse(cls, text: str) -> Sketch:
        """A sketch from ``"sampling:keep"`` or ``"sampling:keep:draw"``, the inverse of ``str``.

        >>> Sketch.parse("rows:0.1")
        Sketch(keep=0.1, sampling='rows', draw='stratified', bits=None)
        """
        if not isinstance(text, str):
            raise TypeError(f"a sketch must be a string like 'rows:0.1', got {text!r}")
        parts = text.split(":")
        if not 2 <= len(parts) <= 3:
            raise ValueError(
                f"a sketch must look like 'rows:0.1' or 'same:0.1:with_replacement', got {text!r}"
            )
        try:
            keep = float(parts[1])
        except ValueError:
            raise ValueError(f"keep must be a number in (0, 1], got {parts[1]!r} in {text!r}") from None
        return cls(keep, parts[0], parts[2] if len(parts) == 3 else "stratified")

    def __str__(self) -> str:
        tail = "" if self.draw == "stratified" else f":{self.draw}"
        return f"{self.sampling}:{self.keep!r}{tail}"

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
    num, den, sampling, _ = sketch.spec if isinstance(sketch, Sketch) else sketch
    sampled = rows if SAMPLINGS[sampling] == "rows" else features
    kept = (sampled * num + den - 1) // den
    values = kept * (features if SAMPLINGS[sampling] == "rows" else rows) * dtype.itemsize
    return (values + PLANE_ALIGN - 1) // PLANE_ALIGN * PLANE_ALIGN + TRAILER_BYTES
