"""The rank salt: what keeps processes that share a seed from sharing samples."""

from __future__ import annotations

import os

import torch

resolved: int | None = None


def _resolve_salt() -> int:
    text = os.environ.get("RAD_KERNELS_SALT", "")
    if text:
        if not text.isdecimal() or int(text) >= 2**32:
            raise ValueError(f"RAD_KERNELS_SALT must be an integer in [0, 2^32), got {text!r}")
        return int(text)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", 0))


@torch.compiler.assume_constant_result
def rank_salt() -> int:
    """The process-wide salt of every key: RAD_KERNELS_SALT, or the distributed rank. Resolved once.

    Ranks that share one seed then still draw independent samples; equal samples would add up their noise.
    """
    global resolved
    if resolved is None:
        resolved = _resolve_salt()
    return resolved
