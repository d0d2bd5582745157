"""The plan of the house, enforced: who may include, import and name what. New files need no entry here."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each C++ layer may include of the others; itself always.
LAYERS = {
    "contract": set(),
    "kernels.h": {"contract"},
    "core": {"kernels.h", "contract"},
    "cpu": {"kernels.h", "contract", "core"},
    "cuda": {"kernels.h", "contract", "core"},
    "ops": {"kernels.h", "contract", "core"},
}
STANDARD_HEADER = re.compile(r"[a-z0-9_]+")
# Headers in angle brackets beyond the C++ standard library's.
SYSTEM_HEADERS = {
    "cpu": re.compile(r"immintrin\.h"),
    "cuda": re.compile(r"(cuda|cuda_runtime|cuda_bf16|cuda_fp16|cuda_fp8)\.h"),
    "ops": re.compile(r"(torch|pybind11)/.*\.h|dlfcn\.h"),
}
# The host stand-in for the GPU: all that kernels may see of tests/.
SIMT_HEADER = "simt.h"
TORCH_FREE = ("contract", "kernels.h", "core", "cpu", "cuda")
TORCH_WORD = re.compile(r"\b(ATen|c10|torch|pybind\w*)\b")
ASM = re.compile(r"\b(asm|__asm__)\b")
ASM_HOMES = ("cuda/ptx.cuh", "cuda/ptx_wgmma.cuh", "cuda/ptx_arithmetic.cuh")

# Python modules from low to high; imports go down only. Modules not named here may sit anywhere in between,
# as long as a named one never reaches, through them, a named one that is not below it.
ORDER = ["_version", "_C", "sketch", "ops", "functional", "nn", "convert", "profile", "plan", "variance"]
ALONE = ("memory", "graph")  # of the package they may import nothing
FOREIGN = {"tests", "benchmarks", "reference"}

MAX_LINES = 400
BUDGETED = ("csrc", "rad_kernels", "tests", "benchmarks", "tools", "examples")
CODE = {".py", ".pyi", ".h", ".cpp", ".cu", ".cuh", ".mk"}
MACHINE_PATH = re.compile(r"(?<![\w.~$)}/-])/(work|root|home|tmp|Users|mnt|data)/")


def without_comments(code: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", code, flags=re.S)


def cpp_files(root: Path) -> list[Path]:
    return sorted(p for p in (root / "csrc").rglob("*") if p.suffix in CODE)


def layer_of(root: Path, file: Path) -> str:
    return file.relative_to(root / "csrc").parts[0]


def include_violations(root: Path) -> list[str]:
    found = []
    for file in cpp_files(root):
        layer = layer_of(root, file)
        if layer not in LAYERS:
            found.append(f"{file.relative_to(root)}: no layer is called {layer}")
            continue
        for bracket, name in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)', file.read_text(), flags=re.M):
            where = f"{file.relative_to(root)} includes {name}"
            if bracket == "<":
                system = SYSTEM_HEADERS.get(layer)
                if not (STANDARD_HEADER.fullmatch(name) or (system and system.fullmatch(name))):
                    found.append(f"{where}: {layer} may not use this header")
                continue
            if layer == "cuda" and name == SIMT_HEADER:
                continue
            target = next((p for p in (file.parent / name, root / "csrc" / name) if p.exists()), None)
            if target is None:
                found.append(f"{where}: not under csrc")
            elif (into := layer_of(root, target.resolve())) not in LAYERS[layer] | {layer}:
                found.append(f"{where}: {layer} may not see {into}")
    return found


def word_violations(root: Path) -> list[str]:
    found = []
    for file in cpp_files(root):
        where, code = file.relative_to(root / "csrc").as_posix(), without_comments(file.read_text())
        if layer_of(root, file) in TORCH_FREE and (match := TORCH_WORD.search(code)):
            found.append(f"csrc/{where} says {match[0]}")
        if where not in ASM_HOMES and (match := ASM.search(code)):
            found.append(f"csrc/{where} says {match[0]}; inline assembly lives in {ASM_HOMES[0]}")
    return found


def module_name(package: Path, file: Path) -> str:
    """First component below the package: the files of nn/ are one module."""
    return file.relative_to(package).parts[0].removesuffix(".py")


def imports(package: Path, file: Path) -> set[str]:
    """Absolute dotted names of everything that a file imports, at top level or inside functions."""
    here = [package.name, *file.relative_to(package).parent.parts]
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{stem}.{alias.name}" for alias in node.names}
    return names


def import_graph(package: Path) -> dict[str, set[str]]:
    """module -> package modules that it imports; the package's __init__ counts as a module."""
    modules = {module_name(package, p) for p in package.rglob("*.py")} | {"_C"}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for file in package.rglob("*.py"):
        source = module_name(package, file)
        for name in imports(package, file):
            parts = name.split(".")
            if parts[0] == package.name:
                target = parts[1] if len(parts) > 1 and parts[1] in modules else "__init__"
                graph[source] |= {target} - {source}
    return graph


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        new = graph[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


def import_violations(root: Path) -> list[str]:
    package = root / "rad_kernels"
    graph = import_graph(package)
    found = []
    for module in graph:
        below = reachable(graph, module)
        if module in below:
            found.append(f"{module} imports itself by way of {sorted(below)}")
        if module in ORDER:
            wrong = below & (set(ORDER[ORDER.index(module) :]) | {"__init__", "__main__"})
            found += [f"{module} must not reach {other}" for other in sorted(wrong - {module})]
        if module in ALONE and below:
            found.append(f"{module} must not import {sorted(below)}")
    for file in package.rglob("*.py"):
        for name in imports(package, file):
            parts = name.removeprefix(package.name + ".").split(".")
            if parts[0] in FOREIGN - {module_name(package, file)}:
                found.append(f"{file.relative_to(root)} imports {name}")
        code = file.read_text()
        if module_name(package, file) != "ops" and "torch.ops.rad_kernels" in code:
            found.append(f"{file.relative_to(root)} names torch.ops.rad_kernels, which only ops may")
    return found


def tracked(root: Path) -> list[Path]:
    if (root / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "-C", root, "ls-files", "-z"], capture_output=True, text=True, check=True
        )
        return [p for name in listed.stdout.split("\0") if name and (p := root / name).is_file()]
    return [p for p in root.rglob("*") if p.is_file() and not {".venv", "build", ".git"} & set(p.parts)]


def length_violations(root: Path) -> list[str]:
    files = [p for p in tracked(root) if p.relative_to(root).parts[0] in BUDGETED and p.suffix in CODE]
    lengths = {p: p.read_text().count("\n") for p in files}
    return [
        f"{p.relative_to(root)} has {n} lines, more than {MAX_LINES}"
        for p, n in lengths.items()
        if n > MAX_LINES
    ]


def path_violations(root: Path) -> list[str]:
    found = []
    for file in tracked(root):
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if match := MACHINE_PATH.search(line):
                found.append(f"{file.relative_to(root)}:{number} names a path of one machine: {match[0]}")
    return found


RULES = [include_violations, word_violations, import_violations, length_violations, path_violations]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule):
    assert rule(ROOT) == []


PLANTED = [
    (include_violations, "csrc/kernels.h", '#include "core/philox.h"'),
    (include_violations, "csrc/core/a.h", '#include "cpu/pack.h"'),
    (include_violations, "csrc/core/a.h", "#include <cuda_runtime.h>"),
    (include_violations, "csrc/cpu/a.cpp", '#include "cuda/ptx.cuh"'),
    (include_violations, "csrc/cuda/a.cu", '#include "../cpu/pack.h"'),
    (include_violations, "csrc/cuda/a.cu", "#include <torch/torch.h>"),
    (include_violations, "csrc/ops/a.cpp", '#include "cpu/pack.h"'),
    (include_violations, "csrc/extra/a.cpp", "int a;"),
    (word_violations, "csrc/cpu/a.cpp", "at::Tensor f(c10::ScalarType);"),
    (word_violations, "csrc/kernels.h", "namespace torch {}"),
    (word_violations, "csrc/cuda/a.cu", 'asm volatile("nop;");'),
    (import_violations, "rad_kernels/functional.py", "from .nn import Linear"),
    (import_violations, "rad_kernels/ops.py", "from .helper import f"),  # helper imports functional
    (import_violations, "rad_kernels/nn/linear.py", "from ..convert import convert"),
    (import_violations, "rad_kernels/memory.py", "from . import sketch"),
    (import_violations, "rad_kernels/graph/tape.py", "from ..sketch import a"),
    (import_violations, "rad_kernels/plan.py", "import benchmarks.timing"),
    (import_violations, "rad_kernels/plan.py", "def f():\n    from .reference import philox"),
    (import_violations, "rad_kernels/functional.py", "y = torch.ops.rad_kernels.linear"),
    (length_violations, "tests/test_a.py", "\n" * (MAX_LINES + 1)),
    (path_violations, "docs/a.md", "run it in " + "/ho" + "me/someone/rad_kernels"),
]


@pytest.mark.parametrize(
    ("rule", "path", "text"), PLANTED, ids=lambda value: getattr(value, "__name__", None)
)
def test_rule_can_fail(rule, path, text, tmp_path):
    clean = {
        "csrc/kernels.h": "// torch-free\n#include <cstdint>\n",
        "csrc/core/philox.h": '#include "kernels.h"\n',
        "csrc/cpu/pack.h": '#include "core/philox.h"\n#include "kernels.h"\n',
        "csrc/cuda/ptx.cuh": '#include <cuda_bf16.h>\ninline void f() { asm("nop;"); }\n',
        "csrc/ops/linear.cpp": '#include <torch/csrc/stable/tensor.h>\n#include "core/philox.h"\n',
        "rad_kernels/__init__.py": "from . import nn\n",
        "rad_kernels/_version.py": "",
        "rad_kernels/sketch.py": "from . import _C\n",
        "rad_kernels/ops.py": "import torch\nfrom .sketch import a\nx = torch.ops.rad_kernels\n",
        "rad_kernels/functional.py": "from . import ops\n",
        "rad_kernels/helper.py": "from . import functional\n",
        "rad_kernels/nn/__init__.py": "from .linear import a\n",
        "rad_kernels/nn/linear.py": "from ..functional import linear\nfrom ..helper import g\n",
        "rad_kernels/convert.py": "from . import nn\n",
        "rad_kernels/memory.py": "import torch\n",
        "rad_kernels/graph/__init__.py": "from .tape import trace\n",
        "rad_kernels/graph/tape.py": "import numpy as np\n",
        "rad_kernels/reference.py": "",
    }
    for name, content in clean.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert rule(tmp_path) == []
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(clean.get(path, "") + text + "\n")
    assert rule(tmp_path) != []
