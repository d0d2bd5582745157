"""What a profile says: bytes by module and tensor, peaks, and the curve of the memory over a step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

CUDA_BLOCK = 512  # bytes, to whose multiples CUDA's caching allocator rounds
PHASES = ("forward", "backward")


def rounded(sizes: Iterable[int]) -> int:
    """Bytes that CUDA's caching allocator sets aside for allocations of these sizes."""
    return sum(-(-size // CUDA_BLOCK) * CUDA_BLOCK for size in sizes)


@dataclass(frozen=True)
class SavedTensor:
    """One storage that the graph keeps alive between forward and backward.

    module, op: who saved it first, as in ``memory.SavedEntry``. bytes: of the whole storage. owner:
    "parameter", "buffer", or "" for what counts as retained. shared_with: "module: op" of others that saved
    it too. held_by: who keeps it alive even without the graph, such as "the caller (inputs[0])".
    """

    module: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    owner: str
    shared_with: tuple[str, ...]
    held_by: str

    @property
    def modules(self) -> frozenset[str]:
        """All that saved it."""
        return frozenset((self.module, *(place.split(": ")[0] for place in self.shared_with)))


@dataclass(frozen=True)
class LayerMemory:
    """One module, without its children.

    name, type: qualified name and class; "(functional)" stands for what ran outside of all modules.
    calls: in the forward pass. parameters: bytes of its own parameters. retained: bytes of what it saved
    first. alone: the part of these that nobody else holds, which is gone if this module keeps nothing.
    became, reason: setting under the sketch, or why the layer is left alone. predicted: bytes that it saves
    first under the sketch. forward_peak, backward_peak: how far the memory rises above its level at the start
    of a call, or of one of its operations in backward. note: why prediction and measurement differ.
    None: not asked for, or not known without running.
    """

    name: str
    type: str
    calls: int
    parameters: int
    retained: int
    alone: int
    became: str = ""
    reason: str = ""
    predicted: int | None = None
    forward_peak: int | None = None
    backward_peak: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Prediction:
    """What a model would retain under a sketch, found without running it (``predict``).

    retained: bytes of a whole step, loss included. by_module: the same by module that saves first. became,
    reasons: setting of each converted layer, and why the others are left alone. shared: groups of layers with
    one pack. before: bytes that the model as it is retains by the same rule. rounded: ``retained`` with each
    tensor in blocks of CUDA's allocator. peak: highest level above that at the start of forward and backward,
    without what operators allocate and free inside; None if it was not asked for.
    """

    retained: int
    by_module: dict[str, int]
    before: int
    before_by_module: dict[str, int]
    became: dict[str, str]
    reasons: dict[str, str]
    shared: tuple[tuple[str, ...], ...]
    rounded: int
    peak: int | None = None


@dataclass(frozen=True)
class Curve:
    """Bytes above the level at the start of the step, after each allocation or release.

    times: seconds since the start, or without running the number of the operation. backward: time at which
    the backward pass begins.
    """

    times: tuple[float, ...]
    levels: tuple[int, ...]
    backward: float

    def _of(self, phase: str) -> list[int]:
        return [n for t, n in zip(self.times, self.levels) if (t >= self.backward) == (phase == "backward")]

    def peak(self, phase: str) -> int:
        return max((0, *self._of(phase)))


@dataclass(frozen=True)
class Profile:
    """Where the memory of a training step goes; str() is a table.

    model: class of the model. device: of its parameters. ran: whether a step was run, rather than its fake.
    layers: modules in the order of registration, then "(functional)". tensors: every saved storage.
    parameters, buffers, gradients: bytes; gradients as the backward pass leaves them. optimizer: bytes of its
    state after a step, None without an optimizer. curve: level of forward and backward. sketch: what
    ``prediction`` was made for, "" without one. notes: what else should be known.
    """

    model: str
    device: str
    ran: bool
    layers: tuple[LayerMemory, ...]
    tensors: tuple[SavedTensor, ...]
    parameters: int
    buffers: int
    gradients: int
    optimizer: int | None
    curve: Curve
    sketch: str = ""
    prediction: Prediction | None = None
    notes: tuple[str, ...] = ()

    @property
    def retained(self) -> int:
        """Bytes that autograd keeps between forward and backward, as ``memory.saved_bytes`` counts them."""
        return sum(tensor.bytes for tensor in self.tensors if not tensor.owner)

    @property
    def held(self) -> int:
        """The part of ``retained`` that stays alive without the graph."""
        return sum(tensor.bytes for tensor in self.tensors if not tensor.owner and tensor.held_by)

    @property
    def rounded(self) -> int:
        """``retained`` in blocks of CUDA's allocator."""
        return rounded(tensor.bytes for tensor in self.tensors if not tensor.owner)

    @property
    def saved_parameters(self) -> int:
        """Bytes of parameters and buffers that the graph refers to; they are not retained by it."""
        return sum(tensor.bytes for tensor in self.tensors if tensor.owner)

    @property
    def predicted(self) -> int | None:
        """Bytes retained under the sketch."""
        return None if self.prediction is None else self.prediction.retained

    @property
    def forward_peak(self) -> int:
        """Highest level of the forward pass above that at the start of the step."""
        return self.curve.peak("forward")

    @property
    def backward_peak(self) -> int:
        """Highest level of the backward pass above that at the start of the step, gradients included."""
        return self.curve.peak("backward")

    @property
    def step_peak(self) -> int:
        return max(self.forward_peak, self.backward_peak)

    @property
    def needed(self) -> int:
        """Parameters, buffers, optimizer state and the peak of a step; inputs are the caller's."""
        return self.parameters + self.buffers + (self.optimizer or 0) + self.step_peak

    def layer(self, name: str) -> LayerMemory:
        """The layer of a name.

        Raises:
            KeyError: there is none.
        """
        found = next((layer for layer in self.layers if layer.name == name), None)
        if found is None:
            raise KeyError(f"no layer is called {name!r}; there are {', '.join(x.name for x in self.layers)}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, sums included: for JSON."""
        sums = ("retained", "held", "rounded", "predicted", "forward_peak", "backward_peak", "needed")
        return {**{name: getattr(self, name) for name in sums}, **asdict(self)}

    def to_json(self, path: str | Path) -> None:
        """Write ``to_dict`` to a file, and the versions and the machine that it was found with."""
        from ..demo.result import environment, to_json

        Path(path).write_text(to_json({"environment": environment(), **self.to_dict()}), encoding="utf-8")

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Profile:
        """The inverse of ``to_dict``."""
        own = {field.name: content[field.name] for field in fields(cls)}
        prediction, curve = content["prediction"], content["curve"]
        own["layers"] = tuple(LayerMemory(**layer) for layer in content["layers"])
        own["tensors"] = tuple(
            SavedTensor(**{**t, "shape": tuple(t["shape"]), "shared_with": tuple(t["shared_with"])})
            for t in content["tensors"]
        )
        own["curve"] = Curve(tuple(curve["times"]), tuple(curve["levels"]), curve["backward"])
        own["notes"] = tuple(content["notes"])
        if prediction is not None:
            shared = tuple(map(tuple, prediction["shared"]))
            own["prediction"] = Prediction(**{**prediction, "shared": shared})
        return cls(**own)

    def plot(self, path: str | Path) -> None:
        """Draw the memory of the step over time, and what each module retains, as PNG; needs matplotlib."""
        from .plot import draw

        draw(self, Path(path))

    def __str__(self) -> str:
        from .table import text

        return text(self)
