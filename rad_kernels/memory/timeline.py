"""How much memory is allocated while code runs: every call of the allocator, as the profiler records them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .saved import require_callable

_NODE = "autograd::engine::evaluate_function: "


@dataclass(frozen=True)
class Span:
    """A range of code, in ns: ``name`` of a ``record_function``, or a graph node's name and number."""

    name: str
    node: int | None
    start: int
    end: int


@dataclass(frozen=True)
class Timeline:
    """times: ns, rising. levels: bytes allocated above the level at entry from then on."""

    times: tuple[int, ...]
    levels: tuple[int, ...]
    spans: tuple[Span, ...]

    @property
    def peak(self) -> int:
        return max((0, *self.levels))

    def level_at(self, time: int) -> int:
        """Just before a moment."""
        index = bisect_left(self.times, time)
        return self.levels[index - 1] if index else 0

    def highest(self, span: Span) -> int:
        """Highest level while a span lasts, its first included."""
        first, last = bisect_left(self.times, span.start), bisect_right(self.times, span.end)
        return max((self.level_at(span.start), *self.levels[first:last]))

    def rise(self, span: Span) -> int:
        """How far the level rises in a span above that at its start."""
        return self.highest(span) - self.level_at(span.start)


def timeline(fn: Callable[[], Any], device: torch.device) -> Timeline:
    """Run fn() and record the memory of one device while it runs; what fn returns stays alive until the end.

    Memory that does not come from torch's allocator is not seen, nor is, on the CPU, the release of memory
    that is older than fn. Spans are those of ``torch.profiler.record_function`` and of graph nodes.

    Raises:
        RuntimeError: torch's profiler is running already.
    """
    if torch.autograd._profiler_enabled():
        raise RuntimeError("memory cannot be recorded while torch's profiler runs")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        result = fn()
    kineto: Any = profiler.profiler
    changes, spans = [], []
    for event in _events(kineto.kineto_results.experimental_event_tree()):
        fields = event.extra_fields
        if event.tag.name == "Allocation":
            if fields.device.type == device.type and device.index in (None, fields.device.index):
                changes.append((event.start_time_ns, fields.ptr, fields.alloc_size))
        elif event.tag.name == "TorchOp":
            if event.name.startswith(_NODE):
                name, node = event.name.removeprefix(_NODE), fields.sequence_number
                spans.append(Span(name, node, event.start_time_ns, event.end_time_ns))
            elif fields.scope.name == "USER_SCOPE":
                spans.append(Span(event.name, None, event.start_time_ns, event.end_time_ns))
    del result
    changes.sort(key=lambda change: change[0])
    spans.sort(key=lambda span: span.start)
    return Timeline(tuple(time for time, _, _ in changes), tuple(_levels(changes)), tuple(spans))


def _events(roots: list[Any]) -> Iterator[Any]:
    stack = list(roots)
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        yield event


def _levels(changes: list[tuple[int, int, int]]) -> Iterator[int]:
    level = 0
    sizes: dict[int, int] = {}
    for _, address, size in changes:
        if size > 0:
            sizes[address] = size
            level += size
        else:  # a block of unknown address was allocated before fn
            level -= sizes.pop(address, 0)
        yield level


def step_peak(fn: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Run fn() and return the highest number of bytes allocated above the level at entry.

    On the CPU every call of torch's allocator is counted, temporaries inside operators and custom C++
    operators included; memory that does not come from torch's allocator (BLAS workspaces, numpy) is not
    seen. Memory that was allocated before fn and that fn frees does not lower the level there, because the
    allocator does not report its size, so call fn with gradients already set to None. On CUDA the figures are
    those of the caching allocator: rounded to its block size, frees of older memory lower the level.

    Args:
        fn: called once, without arguments; what it returns stays alive until the end.
        device: "cpu", or a CUDA device whose memory is measured.
    Raises:
        TypeError: fn is not callable.
        ValueError: device is neither CPU nor CUDA.
        RuntimeError: on the CPU, torch's profiler is running already.
    """
    require_callable("step_peak", fn)
    device = torch.device(device)
    if device.type == "cpu":
        return timeline(fn, device).peak
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        at_entry = torch.cuda.memory_allocated(device)
        result = fn()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - at_entry
        del result
        return peak
    raise ValueError(f"step_peak: device must be a CPU or CUDA device, got {str(device)!r}")
