"""Tabulates what ptxas reported: python tools/kernel_resources.py build/archs/sm_90a/pack.log ...

One row per kernel, one column per architecture: registers + bytes of static shared memory / bytes of stack,
where there is one (arrays indexed at run time live there). Exit status 1 when a kernel spills registers,
or ptxas says that products of wgmma wait for each other.
"""

import re
import subprocess
import sys
from pathlib import Path

ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_\w+'")
MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
SERIALISED = re.compile(r"wgmma.*serialized")


def read(log: Path) -> dict[str, dict[str, int]]:
    """Mangled kernel name -> registers and bytes of stack, spills and shared memory."""
    kernels: dict[str, dict[str, int]] = {}
    current: dict[str, int] = {}
    for line in log.read_text().splitlines():
        if match := ENTRY.search(line):
            current = kernels[match[1]] = {"registers": 0, "stack": 0, "spill": 0, "shared": 0}
        elif match := MEMORY.search(line):
            current["stack"] = int(match[1])
            current["spill"] = int(match[2]) + int(match[3])
        elif match := USED.search(line):
            current["registers"] = int(match[1])
            current["shared"] = int(shared[1]) if (shared := SHARED.search(line)) else 0
    return kernels


def readable(names: list[str]) -> dict[str, str]:
    """Mangled -> short name: no namespaces, no parameter list."""
    try:
        text = subprocess.run(
            ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return {name: name for name in names}
    shown = text.splitlines()
    return {name: shorten(long) for name, long in zip(names, shown, strict=True)}


def shorten(signature: str) -> str:
    depth, end = 0, len(signature)
    for i, char in enumerate(signature):
        depth += (char == "<") - (char == ">")
        if char == "(" and depth == 0 and not signature.startswith("(anonymous", i):
            end = i
            break
    name = signature[:end].removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.sub(r"\b(?:\w+::)+", "", name)


def shown(use: dict[str, int]) -> str:
    stack = f"/{use['stack']}" if use["stack"] else ""
    return f"{use['registers']}+{use['shared']}{stack}"


def main(logs: list[Path]) -> None:
    archs = list(dict.fromkeys(log.parent.name for log in logs))
    found = {arch: {} for arch in archs}
    faults = []
    for log in logs:
        faults += [f"{log}: {line}" for line in log.read_text().splitlines() if SERIALISED.search(line)]
        for kernel, use in read(log).items():
            found[log.parent.name][log.stem, kernel] = use
    keys = list(dict.fromkeys(key for arch in archs for key in found[arch]))
    if not keys:
        sys.exit("ptxas reported no kernel: are the sources empty?")
    names = readable([kernel for _, kernel in keys])
    width = max(len(f"{stem}: {names[kernel]}") for stem, kernel in keys)
    print(f"{'kernel (registers + shared bytes / stack bytes)':{width}}", *(f"{arch:>10}" for arch in archs))
    spills = []
    for stem, kernel in keys:
        cells = []
        for arch in archs:
            use = found[arch].get((stem, kernel))
            cells.append("-" if use is None else shown(use))
            if use and use["spill"]:
                spills.append(f"{arch} {stem}: {names[kernel]} spills {use['spill']} bytes")
        print(f"{stem + ': ' + names[kernel]:{width}}", *(f"{cell:>10}" for cell in cells))
    print(f"{len(keys)} kernels for {len(archs)} architectures; spilling: {len(spills)}")
    if faults := spills + faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(name) for name in sys.argv[1:]])
