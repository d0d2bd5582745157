"""Prints the include directories of the CUDA headers, one line, first found wins.

Looks at CUDA_HOME, CUDA_PATH, /usr/local/cuda, the toolkit of nvcc on PATH, then the NVIDIA wheels that this
Python sees. Exit status 1 and a hint when there are none.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

HEADERS = ("cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h", "crt/host_defines.h")


def with_cccl(include: Path) -> list[Path]:
    """The directories to pass to a compiler, or [] where headers are missing (cccl holds nv/target)."""
    dirs = [include, *filter(Path.is_dir, [include / "cccl"])]
    complete = all((include / name).exists() for name in HEADERS)
    return dirs if complete and any((d / "nv/target").exists() for d in dirs) else []


def toolkit_dirs() -> list[Path]:
    """Include directories of an installed CUDA toolkit."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):
        homes.append(str(Path(nvcc).resolve().parent.parent))
    return next(filter(None, (with_cccl(Path(home) / "include") for home in homes if home)), [])


def wheel_dirs() -> list[Path]:
    """Include directories inside NVIDIA's Python wheels."""
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    includes = sorted((p for root in roots for p in Path(root).glob("cu1?/include")), reverse=True)
    return next(filter(None, map(with_cccl, includes)), [])


def main() -> None:
    dirs = toolkit_dirs() or wheel_dirs()
    if not dirs:
        sys.exit("no CUDA headers found: set CUDA_HOME, or pip install -r requirements/cuda-headers.txt")
    print(*dirs)


if __name__ == "__main__":
    main()
