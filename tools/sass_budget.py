"""Holds the inner loops of the memory-bound kernels to their instruction budgets.

python tools/sass_budget.py build/archs/sm_90a [--write]

tools/sass_budget.json has a row per kernel: the memory instruction by which its elements are counted ("per":
one of it stands for "elements" elements, half as many where two branches hold it), the bytes that move for an
element, how many 16-byte loads must be in flight ("loads": in the loop body), and the greatest cost of an
element in issue slots ("slots").
The loop is the innermost that has such an instruction; everything in it is counted, rare branches too.

A cost is the largest of four (issue slots of one thread, 128 to a clock of a multiprocessor): all
instructions; twice those of the half-rate integer pipe; twice the integer multiplications; eight times
conversions and special functions. Memory takes 128 / 18.6 slots a byte (4.3 TB/s over 132 multiprocessors at
1.75 GHz), so a kernel is memory-bound by arithmetic where its cost is below 6.88 times its bytes.

Exit status 1 where a kernel costs more than its budget, loads less at once, uses local memory or is missing.
--write sets every budget to what was found.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from kernel_resources import readable

BUDGETS = Path(__file__).with_name("sass_budget.json")
SLOTS_PER_BYTE = 128 / 18.6
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z]\w*(?:\.\w+)*)\s*([^;]*);")
HALF_RATE = re.compile(
    r"(LOP3|IADD3|VIADD|ISETP|SHF|PRMT|SEL|FSEL|FSETP|FMNMX|LEA|IMNMX|VIMNMX|PLOP3|I2FP|IABS|HSET2|HMNMX2"
    r"|HSETP2|MOV|FLO|BREV|BMSK|SGXT|P2R|R2P|F2FP)\b"
)
MULTIPLY = re.compile(r"IMAD\b(?!\.MOV|\.SHL|\.U32)")
SPECIAL = re.compile(r"(MUFU|FCHK|F2I|I2F|F2F|FRND|POPC)\b")


@dataclass
class Loop:
    opcodes: list[str]
    body: set[int]  # their numbers

    def count(self, prefix: str) -> int:
        return sum(code.startswith(prefix) for code in self.opcodes)

    def wide(self) -> int:
        return sum(code.startswith(("LDG", "STG")) and ".128" in code for code in self.opcodes)

    def cost(self) -> int:
        """Issue slots of one pass."""
        pipes = Counter[str]()
        for code in self.opcodes:
            pipes["half"] += bool(HALF_RATE.match(code))
            pipes["multiply"] += bool(MULTIPLY.match(code))
            pipes["special"] += bool(SPECIAL.match(code))
        return max(len(self.opcodes), 2 * pipes["half"], 2 * pipes["multiply"], 8 * pipes["special"])


def natural_loops(lines: list[tuple[int, str, str, str]]) -> list[set[int]]:
    """Sets of instruction numbers: what a jump backwards repeats, without the paths of diverged warps."""
    number = {line[0]: i for i, line in enumerate(lines)}
    after: list[list[int]] = []
    for i, (_, predicate, code, operands) in enumerate(lines):
        target = re.search(r"\b0x([0-9a-f]+)", operands) if code.startswith("BRA") else None
        follows = [] if code in ("EXIT", "RET") or (code == "BRA" and not predicate) else [i + 1]
        if predicate and not follows:
            follows = [i + 1]
        if target and code == "BRA" and int(target[1], 16) in number:
            follows.append(number[int(target[1], 16)])
        after.append([j for j in follows if j < len(lines)])
    reached, stack = set[int](), [0]
    before: list[list[int]] = [[] for _ in lines]
    while stack:
        i = stack.pop()
        if i not in reached:
            reached.add(i)
            stack += after[i]
            for j in after[i]:
                before[j].append(i)
    loops: dict[int, set[int]] = {}
    for i in sorted(reached):
        for head in after[i]:
            if head > i or not dominates(head, i, after):
                continue
            body, stack = loops.setdefault(head, {head}), [i]
            while stack:
                j = stack.pop()
                if j not in body:
                    body.add(j)
                    stack += before[j]
    return [body for body in loops.values() if len(body) > 1]  # a kernel ends in a jump to itself


def dominates(head: int, tail: int, after: list[list[int]]) -> bool:
    """Whether every path from the kernel's start to `tail` leads through `head`."""
    seen, stack = {head}, [0] if head else []
    while stack:
        i = stack.pop()
        if i == tail and i not in seen:
            return False
        if i not in seen:
            seen.add(i)
            stack += after[i]
    return True


def hot_loop(lines: list[tuple[int, str, str, str]], per: str) -> Loop:
    """The innermost loop with a `per`; of several the one with most 16-byte accesses, then the shortest."""
    loops = [Loop([lines[i][2] for i in sorted(body)], body) for body in natural_loops(lines)]
    loops = [loop for loop in loops if loop.count(per)]
    inner = [loop for loop in loops if not any(other.body < loop.body for other in loops)]
    return max(inner, key=lambda loop: (loop.wide(), -len(loop.opcodes)), default=Loop([], set()))


def disassembler() -> tuple[str, dict[str, str]]:
    """cuobjdump of a CUDA toolkit or of NVIDIA's wheel, and the environment in which it finds nvdisasm."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec else []
    dirs = [str(path) for root in roots for path in Path(root).glob("cu1?/bin")]
    dirs += [f"{home}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    path = os.pathsep.join([*dirs, "/usr/local/cuda/bin", os.environ.get("PATH", "")])
    tool = shutil.which("cuobjdump", path=path)
    if not tool:
        sys.exit("no cuobjdump found: pip install -r requirements/dev.txt, or a full CUDA toolkit")
    return tool, {**os.environ, "PATH": path}


def kernels_of(binary: Path) -> dict[str, list[tuple[int, str, str, str]]]:
    """Short kernel name -> its instructions: address, predicate, opcode, operands."""
    tool, environment = disassembler()
    command = [tool, "-sass", str(binary)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        sys.exit(f"{' '.join(command)}: {result.stderr.strip()}")
    kernels: dict[str, list[tuple[int, str, str, str]]] = {}
    for part in result.stdout.split("Function : ")[1:]:
        kernels[part.split(maxsplit=1)[0]] = [
            (int(at, 16), predicate, code, operands)
            for at, predicate, code, operands in INSTRUCTION.findall(part)
            if code != "NOP"
        ]
    names = readable(list(kernels))
    return {names[mangled]: lines for mangled, lines in kernels.items()}


def faults(row: dict, loop: Loop, slots: float, instructions: list[tuple[int, str, str, str]]) -> list[str]:
    name = f"{row['file']}: {row['kernel']}"
    found = []
    if slots > row["slots"]:
        found.append(f"{name} costs {slots:.2f} slots an element, its budget is {row['slots']:g}")
    if loop.count("LDG.E.128") < row["loads"]:
        found.append(f"{name} has {loop.count('LDG.E.128')} 16-byte loads in flight, not {row['loads']}")
    if any(code.startswith(("LDL", "STL")) for _, _, code, _ in instructions):
        found.append(f"{name} uses local memory")
    return found


def main(folder: Path, write: bool) -> None:
    rows = json.loads(BUDGETS.read_text())
    width = max(len(f"{row['file']}: {row['kernel']}") for row in rows)
    print(f"{'slots of an element':{width}}  found  budget   memory  loads  bound by")
    errors: list[str] = []
    cache: dict[str, dict[str, list[tuple[int, str, str, str]]]] = {}
    for row in rows:
        if row["file"] not in cache:
            cache[row["file"]] = kernels_of(folder / f"{row['file']}.o")
        instructions = cache[row["file"]].get(row["kernel"])
        if instructions is None:
            errors.append(f"{row['file']}: no kernel {row['kernel']}")
            continue
        loop = hot_loop(instructions, row["per"])
        elements = loop.count(row["per"]) * row["elements"]
        if not elements:
            errors.append(f"{row['file']}: {row['kernel']} has no {row['per']} in its loop")
            continue
        slots, memory = loop.cost() / elements, row["bytes"] * SLOTS_PER_BYTE
        if write:
            row["slots"] = math.ceil(slots * 100) / 100
        print(
            f"{row['file'] + ': ' + row['kernel']:{width}} {slots:6.2f} {row['slots']:7g} {memory:8.2f} "
            f"{loop.count('LDG.E.128'):6}  {'memory' if slots <= memory else 'instructions'}"
        )
        errors += faults(row, loop, slots, instructions)
    if write:
        BUDGETS.write_text("[\n" + ",\n".join("  " + json.dumps(row) for row in rows) + "\n]\n")
    if errors:
        sys.exit("\n".join(errors))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[2:] not in ([], ["--write"]):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), bool(sys.argv[2:]))
