"""What a run of the benchmarks found, and the JSON file that holds it."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from .._version import __version__

FORMAT = 1


@dataclass(frozen=True)
class Row:
    """One provider on one case. Times are seconds; ratios are to the first provider of the case.

    floor: the ratio of the two limits (limits.py), None where no limit is stated.
    to_limit: median time / own limit.
    flops, moved: the least arithmetic and bytes of the step, of which the limit is made.
    retained: bytes kept for backward; peak: bytes above the start of the step. None where not measured.
    """

    suite: str
    case: str
    provider: str
    dtype: str
    median: float
    p20: float
    p80: float
    minimum: float
    rounds: int
    ratio: float
    ratio_minimum: float
    floor: float | None = None
    to_limit: float | None = None
    retained: int | None = None
    peak: int | None = None
    flops: float | None = None
    moved: float | None = None


@dataclass(frozen=True)
class VarianceRow:
    """The noise of the weight gradients of a whole network under one sketch.

    bytes_per_value: of all packs over all values they stand for.
    formula, measured: sum of V over the layers / sum of ||D||^2; formula is None where it has no closed form.
    error: standard error of ``measured``. by_layer: (layer, bytes per value, formula, measured).
    """

    sketch: str
    family: str
    bytes_per_value: float
    formula: float | None
    measured: float
    error: float
    by_layer: tuple[tuple[str, float, float | None, float], ...]


@dataclass(frozen=True)
class Report:
    environment: dict[str, Any]
    settings: dict[str, Any]
    limits: dict[str, dict[str, float]]
    rows: tuple[Row, ...] = ()
    variances: tuple[VarianceRow, ...] = ()

    def to_json(self) -> str:
        content = {"format": FORMAT, **asdict(self)}
        for name in ("rows", "variances"):
            content[name] = [
                {key: _rounded(value) for key, value in entry.items() if value is not None}
                for entry in content[name]
            ]
        head = {key: value for key, value in content.items() if key not in ("rows", "variances")}
        lines = json.dumps(head, indent=1)[:-2]
        for name in ("rows", "variances"):
            entries = ",\n  ".join(json.dumps(entry) for entry in content[name])
            lines += f',\n "{name}": [' + (f"\n  {entries}\n ]" if entries else "]")
        return lines + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Raises ValueError if the text is not such a report."""
        content = json.loads(text)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"not a benchmark report of format {FORMAT}")
        content["rows"] = tuple(Row(**entry) for entry in content["rows"])
        content["variances"] = tuple(
            VarianceRow(
                **{
                    "formula": None,
                    **entry,
                    "by_layer": tuple(tuple(layer) for layer in entry["by_layer"]),
                }
            )
            for entry in content["variances"]
        )
        return cls(**content)


def _rounded(value: Any) -> Any:
    """Five significant digits, which is more than any of this is known to."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def environment(device: torch.device) -> dict[str, Any]:
    """Facts on which the figures depend; none of them names the machine."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "rad_kernels": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
