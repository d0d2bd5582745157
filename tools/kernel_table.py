"""Holds the kernels to the registers and the shared memory that docs/resources.md shows.

python tools/kernel_table.py NVCC build/archs/sm_90a/pack.log ... [--write]

docs/results/kernels.json has, for each architecture and kernel, how many variants there are, the fewest and
most registers of one, and the most static shared memory. Exit status 1 where what ptxas reported is not that.
Another release of nvcc allocates otherwise: then nothing is compared, which is said. --write makes the file
anew; the logs must then be of all six architectures.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from kernel_resources import read, readable

TABLE = Path(__file__).resolve().parent.parent / "docs" / "results" / "kernels.json"
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120")


def release(nvcc: str) -> str:
    """Such as 13.0.88."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    if not (found := re.search(r"\bV(\d+\.\d+\.\d+)", text)):
        raise ValueError(f"{nvcc} --version names no release: {text!r}")
    return found[1]


def used(logs: list[Path]) -> dict[str, dict[str, list[int]]]:
    """Architecture -> "file: kernel" -> variants, fewest and most registers, most bytes of shared memory."""
    table: dict[str, dict[str, list[int]]] = {}
    for log in logs:
        kernels = read(log)
        names = readable(list(kernels))
        rows = table.setdefault(log.parent.name, {})
        for mangled, use in kernels.items():
            name = f"{log.stem}: {names[mangled].split('<')[0]}"
            variants, fewest, most, shared = rows.get(name, [0, use["registers"], 0, 0])
            rows[name] = [
                variants + 1,
                min(fewest, use["registers"]),
                max(most, use["registers"]),
                max(shared, use["shared"]),
            ]
    return {arch: dict(sorted(rows.items())) for arch, rows in table.items()}


def differences(
    found: dict[str, dict[str, list[int]]], recorded: dict[str, dict[str, list[int]]]
) -> list[str]:
    return [
        f"{arch} {name}: {rows.get(name)}, recorded are {recorded.get(arch, {}).get(name)}"
        for arch, rows in found.items()
        for name in sorted({*rows, *recorded.get(arch, {})})
        if rows.get(name) != recorded.get(arch, {}).get(name)
    ]


def table_lines(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """Kernel; variants; registers and static shared memory, an architecture a column."""
    archs = content["archs"]
    lines: list[tuple[str, ...]] = [("file: kernel", "variants", *archs)]
    for name in sorted({name for rows in archs.values() for name in rows}):
        cells = [archs[arch].get(name) for arch in archs]
        lines.append((f"`{name}`", str(max(cell[0] for cell in cells if cell)), *map(shown, cells)))
    return lines


def shown(cell: list[int] | None) -> str:
    if cell is None:
        return "-"
    _, fewest, most, shared = cell
    registers = str(most) if fewest == most else f"{fewest}-{most}"
    return f"{registers} + {shared}" if shared else registers


def main(nvcc: str, logs: list[Path], write: bool) -> None:
    found, used_release = used(logs), release(nvcc)
    if write:
        if missing := [arch for arch in ARCHITECTURES if arch not in found]:
            sys.exit(f"the table needs all architectures, missing: {', '.join(missing)}")
        ordered = {arch: found[arch] for arch in ARCHITECTURES}
        content = {"nvcc": used_release, "archs": ordered}
        TABLE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return
    recorded = json.loads(TABLE.read_text(encoding="utf-8"))
    if recorded["nvcc"] != used_release:
        print(f"not compared: docs/resources.md is of nvcc {recorded['nvcc']}, this is {used_release}")
    elif wrong := differences(found, recorded["archs"]):
        sys.exit("\n".join([*wrong, "variants, registers, shared memory changed: if meant, make resources"]))
    else:
        print(f"registers and shared memory are those of docs/resources.md (nvcc {used_release})")


if __name__ == "__main__":
    write = sys.argv[-1] == "--write"
    names = sys.argv[2 : -1 if write else None]
    if not names:
        sys.exit(__doc__)
    main(sys.argv[1], [Path(name) for name in names], write)
