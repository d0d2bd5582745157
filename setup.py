"""Builds rad_kernels._C against the torch that will run it. Knobs (environment, all optional):

RAD_KERNELS_WITH_CUDA  auto (default) | 1 | 0    auto: when torch has CUDA and a toolkit is found; 1: or fail
TORCH_CUDA_ARCH_LIST   e.g. "8.0;9.0a+PTX"       default: the visible GPUs, else a portable list
CUDA_HOME              toolkit to use            default: CUDA_PATH, /usr/local/cuda, nvcc's, pip's wheels
MAX_JOBS               parallel compile jobs     default: bounded by cores and free memory
RAD_KERNELS_DEBUG      lines: line numbers for profilers and sanitizers; 1: also unoptimised, for debuggers
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from setuptools import setup

ROOT = Path(__file__).parent.resolve()
ABI_MACRO = "0x020a000000000000"  # TORCH_TARGET_VERSION: csrc/ops is written to the stable ABI of 2.10
MIN_TORCH = (2, 11)  # the oldest torch that it is run on
STANDARD = "-std=c++20"  # named, because torch 2.11 would choose C++17 where torch 2.13 chooses C++20
OPTIMISE = {  # RAD_KERNELS_DEBUG -> flags for g++, for nvcc
    "0": (["-O3", "-g0"], ["-O3"]),
    "lines": (["-O3", "-g1"], ["-O3", "-lineinfo"]),
    "1": (["-O0", "-g"], ["-O0", "-G"]),
}
PORTABLE_ARCHS = ("8.0", "9.0a", "10.0", "12.0+PTX")
TOOLKIT_WHEELS = "pip install 'cuda-toolkit[nvcc,cudart,cccl]==13.0.*'"


class Toolkit(NamedTuple):
    home: Path
    nvcc: Path
    cudart: Path


def fail(message: str) -> SystemExit:
    return SystemExit(f"\nrad_kernels: {message}\n")


def setting(name: str, default: str = "") -> str:
    return os.environ.get(name) or default


def site_dirs() -> list[str]:
    return [path for key in ("purelib", "platlib") if (path := sysconfig.get_path(key))]


def import_torch() -> ModuleType:
    try:
        import torch
    except ModuleNotFoundError:
        # pip's isolated build runs the target interpreter with its site-packages hidden. Build against the
        # torch that will run the package, never a downloaded other one. Appended: build requirements win.
        sys.path += [path for path in site_dirs() if path not in sys.path]
        try:
            import torch
        except ModuleNotFoundError:
            raise fail(
                "it compiles against your installed PyTorch, and none was found.\n"
                f"  1. install PyTorch >= {MIN_TORCH[0]}.{MIN_TORCH[1]}\n"
                "  2. pip install --no-build-isolation .      (uv: uv pip install --no-build-isolation .)"
            ) from None
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < MIN_TORCH:
        raise fail(f"PyTorch >= {MIN_TORCH[0]}.{MIN_TORCH[1]} is needed, found {torch.__version__}")
    return torch


def find_toolkit() -> Toolkit | None:
    candidates = [setting("CUDA_HOME"), setting("CUDA_PATH"), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):
        candidates.append(str(Path(nvcc).resolve().parent.parent))
    for site in site_dirs():
        candidates += sorted(map(str, Path(site).glob("nvidia/cu1?")), reverse=True)
    libraries = (
        "lib64/libcudart.so",
        "lib/libcudart.so",
        "targets/*/lib/libcudart.so",
        "lib*/libcudart.so.*",
    )
    for home in map(Path, filter(None, candidates)):
        if (home / "bin/nvcc").exists() and (home / "include/cuda_runtime.h").exists():
            for pattern in libraries:
                if found := sorted(home.glob(pattern)):
                    return Toolkit(home, home / "bin/nvcc", found[0])
    return None


def wanted_toolkit(torch: ModuleType) -> Toolkit | None:
    """The toolkit to build the CUDA backend with, or None for a CPU-only build."""
    choice = setting("RAD_KERNELS_WITH_CUDA", "auto")
    if choice not in ("auto", "1", "0"):
        raise fail(f"RAD_KERNELS_WITH_CUDA must be auto, 1 or 0, got {choice!r}")
    if choice == "0" or (choice == "auto" and not torch.version.cuda):
        return None
    toolkit = find_toolkit()
    if toolkit is None:
        missing = "no CUDA toolkit (nvcc, headers and cudart) was found; set CUDA_HOME, or: " + TOOLKIT_WHEELS
        if choice == "1":
            raise fail(f"RAD_KERNELS_WITH_CUDA=1 but {missing}")
        print(f"rad_kernels: WARNING: torch has CUDA {torch.version.cuda} but {missing}", file=sys.stderr)
        print("rad_kernels: WARNING: building the CPU backend only", file=sys.stderr)
    return toolkit


def cuda_archs(torch: ModuleType, toolkit: Toolkit) -> list[str]:
    """Architectures as TORCH_CUDA_ARCH_LIST spells them; 9.0 becomes 9.0a, which the wgmma kernels need."""
    if listed := setting("TORCH_CUDA_ARCH_LIST"):
        archs = listed.replace(" ", ";").replace(",", ";").split(";")
    elif gpus := torch.cuda.device_count():
        archs = sorted({"{}.{}".format(*torch.cuda.get_device_capability(i)) for i in range(gpus)})
    else:
        known = subprocess.check_output([toolkit.nvcc, "--list-gpu-arch"], text=True).split()
        archs = [arch for arch in PORTABLE_ARCHS if f"compute_{''.join(filter(str.isdigit, arch))}" in known]
    archs = ["9.0a" + a[3:] if a in ("9.0", "9.0+PTX") else a for a in archs if a]
    for arch in archs:
        if not arch.removesuffix("+PTX").rstrip("af").replace(".", "", 1).isdecimal():
            raise fail(f"TORCH_CUDA_ARCH_LIST: expected entries like 8.0, 9.0a or 12.0+PTX, got {arch!r}")
    return archs


def gencode(archs: list[str]) -> list[str]:
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def default_jobs() -> int:
    try:
        free_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 2**30
    except (ValueError, OSError):
        free_gib = 8
    return max(1, min(os.cpu_count() or 1, int(free_gib // 2)))


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def extension(torch: ModuleType):
    import pybind11
    from torch.utils import cpp_extension

    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise fail(f"Python.h is missing for {sys.executable}: install python3-dev (Debian) or python3-devel")
    debug = setting("RAD_KERNELS_DEBUG", "0")
    if debug not in OPTIMISE:
        raise fail(f"RAD_KERNELS_DEBUG must be one of {', '.join(OPTIMISE)}, got {debug!r}")
    # Contraction off: a multiply-add must round the same way on every compiler, core and thread count.
    common = ["-fvisibility=hidden", "-ffp-contract=off", f"-ffile-prefix-map={ROOT}/="]
    cxx_level, nvcc_level = OPTIMISE[debug]
    cxx = [STANDARD, *common, *cxx_level, "-Wall", "-Wextra", "-Wno-unused-parameter"]
    macros = [
        ("TORCH_TARGET_VERSION", ABI_MACRO),
        ("RAD_BUILT_WITH_TORCH", f'"{torch.__version__}"'),
    ]
    files = sources("csrc/ops/*.cpp", "csrc/cpu/*.cpp")
    include = [str(ROOT / "csrc"), pybind11.get_include()]
    nvcc: list[str] = []
    link: list[str] = []
    summary = "CPU backend only"
    if toolkit := wanted_toolkit(torch):
        archs = cuda_archs(torch, toolkit)
        files += sources("csrc/cuda/*.cu")
        include.append(str(toolkit.home / "include"))
        macros += [("RAD_WITH_CUDA", "1"), ("RAD_CUDA_ARCHS", f'"{";".join(archs)}"')]
        nvcc = [STANDARD, *nvcc_level, "--threads=2", *gencode(archs)]
        nvcc += [f"-Xcompiler={flag}" for flag in common]
        # CUDA torch has this libcudart loaded already; a CPU-only torch (cross build) has to be told where.
        link = [str(toolkit.cudart)]
        if not torch.version.cuda:
            link.append(f"-Wl,-rpath,{toolkit.cudart.parent}")
        cpp_extension.CUDA_HOME = str(toolkit.home)  # torch leaves it None when it is CPU-only
        summary = f"CPU and CUDA backends ({toolkit.home}, archs {';'.join(archs)})"
    if not files:
        raise fail(f"no sources under {ROOT / 'csrc'}: is this a complete checkout or sdist?")
    os.environ.setdefault("MAX_JOBS", str(default_jobs()))
    print(f"rad_kernels: torch {torch.__version__}, {summary}", file=sys.stderr)
    module = cpp_extension.CppExtension(
        "rad_kernels._C",
        files,
        include_dirs=include,
        define_macros=macros,
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        extra_link_args=link,
    )

    class BuildExtension(cpp_extension.BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            # An editable install hands over a fresh temporary directory; here, objects outlive it.
            backend = "cuda" if toolkit else "cpu"
            self.build_temp = str(ROOT / "build" / f"{sys.implementation.cache_tag}-{backend}")

    return module, BuildExtension


if __name__ == "__main__":
    module, build_ext = extension(import_torch())
    setup(ext_modules=[module], cmdclass={"build_ext": build_ext})
