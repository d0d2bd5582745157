"""The rank salt: what keeps processes that share a seed from sharing samples."""

from __future__ import annotations

import os
from functools import cache

import torch

resolved: int | None = None


@cache
def _of_environment() -> tuple[int | None, int | None]:
    """(RAD_KERNELS_SALT, the RANK that launchers set), None where not set."""
    text, rank = os.environ.get("RAD_KERNELS_SALT", ""), os.environ.get("RANK")
    if text and (not text.isdecimal() or int(text) >= 2**32):
        raise ValueError(f"RAD_KERNELS_SALT must be an integer in [0, 2^32), got {text!r}")
    return int(text) if text else None, None if rank is None else int(rank)


def _resolve_salt() -> int | None:
    """None while it cannot be told: a process that joins a group later gets its rank then."""
    salt, rank = _of_environment()
    if salt is not None:
        return salt
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return rank


@torch.compiler.assume_constant_result
def rank_salt() -> int:
    """The process-wide salt of every key: RAD_KERNELS_SALT, or the distributed rank; 0 until there is one.
    Resolved once.

    Ranks that share one seed then still draw independent samples; equal samples would add up their noise.
    """
    global resolved
    if resolved is None:
        resolved = _resolve_salt()
    return resolved or 0
