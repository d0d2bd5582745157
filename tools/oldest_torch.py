"""Compiles csrc/ops against the headers of the oldest supported torch (a download of half a gigabyte).

The other checks run on a newer torch, whose headers define more than the oldest one's.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parent.parent
HEADERS = ROOT / "build" / "oldest"


def build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fetch(version: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "-qq",
            "download",
            "--no-deps",
            "--dest",
            folder,
            f"torch=={version}",
        ]
        subprocess.run(pip, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(HEADERS, [n for n in archive.namelist() if n.startswith("torch/include/")])


def main() -> None:
    setup = build_script()
    include = HEADERS / "torch/include"
    if not include.exists():
        fetch(".".join(map(str, (*setup.MIN_TORCH, 0))))
    macros = [f"-DTORCH_TARGET_VERSION={setup.ABI_MACRO}", "-DTORCH_EXTENSION_NAME=_C", "-DRAD_WITH_CUDA"]
    macros += ['-DRAD_CUDA_ARCHS=""', '-DRAD_BUILT_WITH_TORCH=""']
    paths = [f"-I{ROOT / 'csrc'}", f"-I{pybind11.get_include()}", "-isystem", include]
    paths += ["-isystem", sysconfig.get_path("include")]
    failed = 0
    for source in sorted((ROOT / "csrc/ops").glob("*.cpp")):
        command = ["g++", setup.STANDARD, "-fsyntax-only", "-fvisibility=hidden", *macros, *paths, source]
        failed += subprocess.run(command).returncode != 0
    print(f"csrc/ops against torch {'.'.join(map(str, setup.MIN_TORCH))}: {failed} files failed")
    sys.exit(failed != 0)


if __name__ == "__main__":
    main()
