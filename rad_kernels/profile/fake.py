"""A step without data, memory or work: torch's fake tensors go through the model's own code."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Module, Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Fakes:
    """Fake copies of a model and of tensors, on one device. What shares a storage goes on sharing it."""

    def __init__(self, device: torch.device) -> None:
        self.mode, self.device = FakeTensorMode(allow_non_fake_inputs=True), device
        self._made: dict[int, tuple[Tensor, Tensor]] = {}
        self._storages: dict[tuple[int, torch.dtype], Tensor] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._made:  # the tensor is kept, so that its id stays its own
            self._made[id(tensor)] = (tensor, self._make(tensor))
        return self._made[id(tensor)][1]

    def _make(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = (storage._cdata, tensor.dtype)
        with self.mode, torch.no_grad():
            if key not in self._storages:
                count = storage.nbytes() // tensor.dtype.itemsize
                self._storages[key] = torch.empty(count, dtype=tensor.dtype, device=self.device)
            place = tensor.size(), tensor.stride(), tensor.storage_offset()
            fake = self._storages[key].as_strided(*place).detach()
        if isinstance(tensor, Parameter):
            return Parameter(fake, tensor.requires_grad)
        return fake.requires_grad_(tensor.requires_grad)

    def tree(self, values: Any) -> Any:
        return tree_map(lambda leaf: self(leaf) if isinstance(leaf, Tensor) else leaf, values)

    def copy(self, model: Module) -> Module:
        """A copy of the model's code and settings around fake tensors, plain attributes included."""
        held = [leaf for module in model.modules() for leaf in tree_leaves(vars(module))]
        memo = {id(leaf): self(leaf) for leaf in held if isinstance(leaf, Tensor)}
        with self.mode:
            return copy.deepcopy(model, memo)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raises RuntimeError with what it means if fake tensors do not get through."""
    try:
        yield
    except (ValueError, TypeError):
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise RuntimeError(
            f"{what} needs the model to run without data, on fake tensors, which fails: "
            f"{type(error).__name__}: {reason}"
        ) from error


class Levels(TorchDispatchMode):
    """The level of memory while fake tensors are computed: storages that operators return, as they are made
    and die. What an operator allocates and frees inside is not seen."""

    def __init__(self, known: Any) -> None:
        super().__init__()
        self.level, self.operations = 0, 0
        self.times: list[int] = []
        self.levels: list[int] = []
        self._alive = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves(known) if isinstance(leaf, Tensor)
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self._change(size)
        weakref.finalize(storage, self._died, key, size).atexit = False

    def _died(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._change(-size)

    def _change(self, size: int) -> None:
        self.level += size
        self.times.append(self.operations)
        self.levels.append(self.level)
