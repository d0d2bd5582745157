"""Randomized automatic differentiation for PyTorch: layers that keep a small unbiased stand-in for each
activation."""

import platform as _platform

import torch as _torch  # first: it loads the libraries that _C needs

from ._version import __version__

try:
    from . import _C
except ImportError as _error:
    raise ImportError(
        f"rad_kernels {__version__}: the compiled library does not load under Python "
        f"{_platform.python_version()} and torch {_torch.__version__}: {_error}\n"
        "Build it for this environment, in the source folder:  pip install --no-build-isolation -e ."
    ) from _error

from . import functional, memory, nn
from .convert import convert, restore
from .plan import fit
from .profile import predict, profile
from .sketch import Sketch
from .variance import NoiseController, variance


def show_config() -> str:
    """One line a fact: versions, what was compiled, and what this process uses."""
    from .ops import rank_salt

    gpu = _torch.cuda.get_device_name() if _torch.cuda.is_available() else "none visible"
    lines = [
        f"rad_kernels   {__version__} (saved format {_C.format_version})",
        f"python        {_platform.python_version()} on {_platform.machine()}",
        f"torch         {_torch.__version__} (built with {_C.built_with_torch})",
        f"CUDA kernels  {_C.cuda_archs if _C.has_cuda else 'not built'}",
        f"GPU           {gpu}",
        f"CPU threads   {_torch.get_num_threads()}",
        f"rank salt     {rank_salt()}",
    ]
    return "\n".join(lines)


__all__ = [
    "NoiseController",
    "Sketch",
    "__version__",
    "convert",
    "fit",
    "functional",
    "memory",
    "nn",
    "predict",
    "profile",
    "restore",
    "show_config",
    "variance",
]
