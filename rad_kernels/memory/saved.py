"""What autograd retains for backward: one entry a storage, whoever saved it."""

from __future__ import annotations

import gc
import threading
import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

FUNCTIONAL = "(functional)"  # where no module was running
_LEAF = "torch::autograd::AccumulateGrad"


@dataclass(frozen=True)
class SavedEntry:
    """One storage that the autograd graph keeps alive.

    module: qualified name of the module that saved it first, its class name, or "(functional)".
    op: name of the graph node that saved it, such as "AddmmBackward0"; "" where it is unknown.
    shape, dtype: of the saved tensor. bytes: of its whole storage, which may be larger than the tensor.
    shared_with: "module: op" of every further place that saved the same storage.
    """

    module: str
    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    shared_with: tuple[str, ...]


@dataclass(frozen=True)
class SavedBytes:
    """What autograd retains for backward; str() is a table."""

    entries: tuple[SavedEntry, ...]

    @property
    def total(self) -> int:
        """Bytes of all entries."""
        return sum(entry.bytes for entry in self.entries)

    @property
    def by_module(self) -> dict[str, int]:
        """Bytes by module, in the order in which the modules first saved something."""
        sums: dict[str, int] = {}
        for entry in self.entries:
            sums[entry.module] = sums.get(entry.module, 0) + entry.bytes
        return sums

    def __str__(self) -> str:
        rows = [("module", "op", "shape", "dtype", "bytes", "also saved by")]
        for entry in self.entries:
            shape = "x".join(map(str, entry.shape)) or "scalar"
            dtype = str(entry.dtype).removeprefix("torch.")
            shared = ", ".join(entry.shared_with)
            rows.append((entry.module, entry.op, shape, dtype, f"{entry.bytes:,}", shared))
        rows.append(("total", "", "", "", f"{self.total:,}", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = []
        for module, op, shape, dtype, count, shared in rows:
            cells = (module.ljust(widths[0]), op.ljust(widths[1]), shape.rjust(widths[2]))
            lines.append("  ".join((*cells, dtype.ljust(widths[3]), count.rjust(widths[4]), shared)).rstrip())
        return "\n".join(lines)


def saved_bytes(fn: Callable[[], Any]) -> SavedBytes:
    """Run fn() and report everything that autograd retains for backward when fn has returned.

    Counted are the tensors saved by graphs that are still alive then, so fn returns what keeps its graph
    alive (usually the loss); a graph that fn has run backward through, or dropped, holds nothing. Each
    storage counts once, with its whole size: a saved slice of a large tensor keeps all of it. Parameters and
    buffers of modules, and all views of them, never count. Tensors that a custom autograd.Function stores
    on its ctx instead of passing them to save_for_backward count where the graph is reachable from what fn
    returns. Inside a non-reentrant checkpoint, and under other saved_tensors_hooks that fn sets up, only
    what is saved outside of that context is seen. Works on any device, the meta device included.

    While fn runs, autograd's check that no saved tensor was modified in place is off (saved-tensor hooks
    switch it off), and torch.func transforms raise.

    Args:
        fn: called once, without arguments; runs the forward pass.
    Raises:
        TypeError: fn is not callable.
    """
    require_callable("saved_bytes", fn)
    recorder = Recorder()
    with recorder:
        result = fn()
    return SavedBytes(tuple(f.entry for f in recorder.found(result) if f.owner == ""))


@dataclass(frozen=True)
class Found:
    """A storage that a graph keeps alive. owner: "parameter", "buffer", or "" for what counts as retained."""

    entry: SavedEntry
    owner: str
    storage: StorageWeakRef


class _Saved:
    """What the hooks hand to autograd in place of the tensor: it dies with the graph that holds it."""

    __slots__ = ("__weakref__", "number", "scope", "tensor")

    def __init__(self, tensor: Tensor, scope: tuple[nn.Module, ...], number: int) -> None:
        self.tensor, self.scope, self.number = tensor, scope, number


class Recorder:
    """Records, while active, what this thread saves and which modules are running then.

    A scope is the tuple of running modules, from the outermost (a root) to the innermost. With a model, its
    modules go by their names in it, whoever calls them.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model
        self.saved: list[weakref.ref[_Saved]] = []
        self.roots: list[nn.Module] = []
        self.calls: Counter[nn.Module] = Counter()
        self._running: list[nn.Module] = []
        # Nodes from starts[i] up to starts[i + 1] are made in scopes[i].
        self._starts: list[int] = [_next_node_number()]
        self._scopes: list[tuple[nn.Module, ...]] = [()]
        self._thread = threading.get_ident()

    def __enter__(self) -> None:
        self._handles = [
            nn.modules.module.register_module_forward_pre_hook(self._enter_module),
            nn.modules.module.register_module_forward_hook(self._leave_module, always_call=True),
        ]
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.tensor)
        self._hooks.__enter__()

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)
        for handle in self._handles:
            handle.remove()

    def found(self, result: Any) -> tuple[Found, ...]:
        """One for each storage that a graph keeps alive, in the order of first saving. ``result``: what the
        recorded code returned, in any nesting."""
        return _found(self, result)

    def names(self) -> Callable[[tuple[nn.Module, ...]], str]:
        """Maps a scope to the name of its innermost module, as in ``SavedEntry.module``."""
        return _module_namer(self.roots, self.model)

    def scope_of_node(self, number: int) -> tuple[nn.Module, ...]:
        index = bisect_right(self._starts, number) - 1
        return self._scopes[index] if index >= 0 else ()

    def is_recorded(self, number: int) -> bool:
        """Whether a node is younger than this recorder."""
        return number >= self._starts[0]

    def _pack(self, tensor: Tensor) -> _Saved:
        # A node takes its number when it is made, just before it saves: the latest number is its own.
        # Detached, because an output that a node saves refers back to the node: the cycle would outlive it.
        saved = _Saved(tensor.detach(), self._scopes[-1], _next_node_number() - 1)
        self.saved.append(weakref.ref(saved))
        return saved

    def _scope_changed(self) -> None:
        self._starts.append(_next_node_number())
        self._scopes.append(tuple(self._running))

    def _enter_module(self, module: nn.Module, _args: Any) -> None:
        if torch.compiler.is_compiling() or threading.get_ident() != self._thread:
            return
        if not self._running and all(root is not module for root in self.roots):
            self.roots.append(module)
        self.calls[module] += 1
        self._running.append(module)
        self._scope_changed()

    def _leave_module(self, module: nn.Module, _args: Any, _output: Any) -> None:
        if torch.compiler.is_compiling() or threading.get_ident() != self._thread:
            return
        self._running.pop()
        self._scope_changed()


def _next_node_number() -> int:
    """The number that the next autograd node made by this thread will get."""
    return torch._C._autograd._get_sequence_nr()


def _found(recorder: Recorder, result: Any) -> tuple[Found, ...]:
    nodes = [node for node in _reachable_nodes(result) if recorder.is_recorded(node._sequence_nr())]
    op_names = {node._sequence_nr(): node.name() for node in nodes if node.name() != _LEAF}
    module_name = recorder.names()
    owners = _parameter_and_buffer_storages()
    found: dict[int, tuple[Tensor, list[tuple[str, str]]]] = {}

    def record(tensor: Tensor, scope: tuple[nn.Module, ...], op: str) -> None:
        module = module_name(scope)
        for part in _strided_parts(tensor):
            key = part.untyped_storage()._cdata
            found.setdefault(key, (part, []))[1].append((module, op))

    for reference in recorder.saved:
        if (saved := reference()) is not None:
            record(saved.tensor, saved.scope, op_names.get(saved.number, ""))
    for node in nodes:
        for tensor in _tensors_on_ctx(node):
            record(tensor, recorder.scope_of_node(node._sequence_nr()), node.name())
    return tuple(
        Found(_entry(tensor, places), owners.get(key, ""), StorageWeakRef(tensor.untyped_storage()))
        for key, (tensor, places) in found.items()
    )


def _entry(tensor: Tensor, places: list[tuple[str, str]]) -> SavedEntry:
    return SavedEntry(
        module=places[0][0],
        op=places[0][1],
        shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        bytes=tensor.untyped_storage().nbytes(),
        shared_with=tuple(": ".join(filter(None, place)) for place in places[1:]),
    )


def _module_namer(roots: list[nn.Module], model: nn.Module | None) -> Callable[[tuple[nn.Module, ...]], str]:
    """Maps a scope to the name under which its innermost module is reported."""
    known = {} if model is None else {module: name for name, module in model.named_modules()}
    root_names: dict[int, str] = {}
    seen: Counter[str] = Counter()
    for root in roots:
        name = type(root).__name__
        seen[name] += 1
        root_names[id(root)] = name if seen[name] == 1 else f"{name}#{seen[name]}"
    qualified = {id(root): {id(module): name for name, module in root.named_modules()} for root in roots}
    ambiguous = sum(len(names) > 1 for names in qualified.values()) > 1

    def name_of(scope: tuple[nn.Module, ...]) -> str:
        if not scope:
            return FUNCTIONAL
        root, module = id(scope[0]), scope[-1]
        if module in known:
            return known[module] or type(module).__name__
        if module is scope[0]:
            return root_names[root]
        name = qualified[root].get(id(module), type(module).__name__)
        return f"{root_names[root]}.{name}" if ambiguous else name

    return name_of


def _reachable_nodes(result: Any) -> Iterator[Any]:
    """Every autograd node below the tensors in `result` (any nesting of tuples, lists and dicts)."""
    stack = [leaf.grad_fn for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    visited: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is not None and node not in visited:
            visited.add(node)
            stack.extend(child for child, _ in node.next_functions)
            yield node


def _tensors_on_ctx(node: Any) -> Iterator[Tensor]:
    """Tensors that a Python autograd.Function keeps as attributes of its ctx (which is its node)."""
    if isinstance(node, torch.autograd.function.FunctionCtx):
        for leaf in tree_leaves(vars(node)):
            if isinstance(leaf, Tensor):
                yield leaf


def _strided_parts(tensor: Any) -> Iterator[Tensor]:
    """The tensors that own the memory of `tensor`: itself, unless it is a wrapper or sparse."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            part = getattr(tensor, name)
            if isinstance(part, Tensor):  # a DTensor also names its mesh
                yield from _strided_parts(part)
    elif tensor.layout is torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    else:
        yield tensor


class _IsOfInterest(dict[type, bool]):
    """Class -> whether its instances can be Parameters or modules."""

    def __missing__(self, cls: type) -> bool:
        self[cls] = found = issubclass(cls, (Tensor, nn.Module))
        return found


def _parameter_and_buffer_storages() -> dict[int, str]:
    """Storages of all Parameters and module buffers of the process, and which of the two they are.

    The garbage collector knows them all, also those of modules that are never called: autograd saves plain
    tensors that share a storage with a Parameter, and nothing on them tells whose they are.
    """
    objects = gc.get_objects()
    owned: list[tuple[Tensor, str]] = []
    # By type, never isinstance on every object: fast, and proxies may run code when asked for __class__.
    for candidate in compress(objects, map(_IsOfInterest().__getitem__, map(type, objects))):
        if isinstance(candidate, nn.Module):
            owned.extend((buffer, "buffer") for buffer in candidate.buffers(recurse=False))
        elif isinstance(candidate, nn.Parameter):
            owned.append((candidate, "parameter"))
    return {
        part.untyped_storage()._cdata: owner
        for tensor, owner in owned
        if not nn.parameter.is_lazy(tensor)
        for part in _strided_parts(tensor)
    }


def require_callable(caller: str, fn: object) -> None:
    if not callable(fn):
        raise TypeError(f"{caller}: fn must be callable without arguments, got {type(fn).__name__}")
