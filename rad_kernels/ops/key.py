"""Who draws the key of a pack: the op itself, but for selective checkpointing."""

from __future__ import annotations

import torch
import torch.utils.checkpoint
from torch import Tensor

_MODES = ("_CachingTorchDispatchMode", "_CachedTorchDispatchMode")
SELECTIVE = tuple(getattr(torch.utils.checkpoint, name) for name in _MODES)


def visible_key(key: Tensor | None, device: torch.device, count: int = 1) -> Tensor | None:
    """``key``; where there is none and selective checkpointing is on, one drawn by torch's own op.

    An op whose output selective checkpointing keeps is not run again in backward. Had it drawn its key
    itself, whatever is run again after it, dropout for instance, would find torch's generator in another
    state than in the forward pass. A draw apart is run again, whichever outputs are kept, and draws the same.
    """
    if key is not None or torch.compiler.is_compiling() or not torch._C._len_torch_dispatch_stack():
        return key
    modes = (torch._C._get_dispatch_stack_at(i) for i in range(torch._C._len_torch_dispatch_stack()))
    if not any(isinstance(mode, SELECTIVE) for mode in modes):
        return None
    return torch.empty(count, dtype=torch.int64, device=device).random_()
