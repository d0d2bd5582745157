"""The CUDA kernels on numpy arrays: ``tests/cpp/build/libsimt_kernels.so`` through ctypes.

``library()`` builds what is out of date. Shapes and meanings are those of csrc/kernels.h, whose structs are
repeated here; arrays must be contiguous, and bf16 travels as uint16.
"""

import ctypes
import functools
import shutil
import subprocess
import sys
from ctypes import Structure, c_char_p, c_int, c_int64, c_uint64
from pathlib import Path

import numpy as np

from tests.simt_structs import (
    ARGS,
    DecodeArgs,
    DropoutArgs,
    Exec,
    GatherArgs,
    Layout,
    LinearWgradArgs,
    MaskedArgs,
    MatrixView,
    NormSampleArgs,
    PackArgs,
    ReluArgs,
    SampleArgs,
    ScatterArgs,
    SignsArgs,
    SketchSpec,
    UnpackArgs,
)

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "tests/cpp/build/libsimt_kernels.so"
DTYPES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
NORM = 3  # Draw::kNorm
ITEM_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


def missing() -> str:
    """What this machine lacks to build the library; empty when nothing."""
    if tool := next((tool for tool in ("make", "g++") if not shutil.which(tool)), ""):
        return f"{tool} is not installed"
    found = subprocess.run([sys.executable, ROOT / "tools/cuda_include.py"], capture_output=True, text=True)
    return found.stderr.strip() if found.returncode else ""


@functools.cache
def library() -> ctypes.CDLL:
    include = subprocess.run(
        [sys.executable, ROOT / "tools/cuda_include.py"], capture_output=True, text=True, check=True
    ).stdout.strip()
    command = ["make", "-s", "-j2", "-C", ROOT / "tests/cpp", "lib", f"CUDA_INC={include}"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    loaded = ctypes.CDLL(str(LIBRARY))
    loaded.simt_message.restype = c_char_p
    loaded.simt_sizeof.restype = c_int64
    for name in ("sample", "norm_sample", "pack", "unpack", "linear_wgrad"):
        getattr(loaded, f"simt_{name}_workspace").restype = c_int64
    return loaded


def run(name: str, args: Structure) -> None:
    """Executes one contraction, with workspace where it wants some; raises what the harness found."""
    if hasattr(args, "workspace"):
        size = getattr(library(), f"simt_{name}_workspace")(ctypes.byref(args))
        workspace = np.empty(size, np.uint8)
        args.workspace = workspace.ctypes.data
    if getattr(library(), f"simt_{name}")(ctypes.byref(args)):
        raise RuntimeError(library().simt_message().decode())


def schedule(order: int, seed: int = 1) -> None:
    """0: threads in ascending order, 1: descending, 2: random."""
    library().simt_schedule(c_int(order), c_uint64(seed))


def address(array: np.ndarray) -> int:
    assert array.flags.c_contiguous
    return array.ctypes.data


def view(array: np.ndarray) -> MatrixView:
    """A two-dimensional array with any strides."""
    rows, cols = array.shape
    row, col = (stride // array.itemsize for stride in array.strides)
    return MatrixView(array.ctypes.data, rows, cols, col, (1, 1, rows), (0, 0, row))


def trailer_of(key: int, salt: int = 0) -> np.ndarray:
    return np.array([key, salt, 1, 0, 0, 0, 0, 0], np.uint64)


def layout_of(spec, dtype: str, rows: int, features: int) -> Structure:
    layout = Layout()
    assert ctypes.sizeof(layout) == library().simt_sizeof(len(ARGS))
    library().simt_saved_layout(
        ctypes.byref(SketchSpec(*spec)),
        DTYPES[dtype],
        c_int64(rows),
        c_int64(features),
        ctypes.byref(layout),
    )
    return layout


def sample(spec, n: int, key: int, salt: int = 0, outer: int = 0) -> np.ndarray:
    trailer = trailer_of(key, salt)
    index = np.full(-(-n * spec[0] // spec[1]), -1, np.int64)
    run("sample", SampleArgs(Exec(), SketchSpec(*spec), address(trailer), n, outer, 1, address(index)))
    return index


def pack(x: np.ndarray, dtype: str, spec, key: int, salt: int) -> np.ndarray:
    """The saved buffer of x [rows, features], any strides; not for ``project``."""
    layout = layout_of(spec, dtype, *x.shape)
    saved = np.zeros(layout.nbytes, np.uint8)
    saved[layout.trailer :][:8].view(np.uint64)[0] = key
    head = (Exec(), SketchSpec(*spec), DTYPES[dtype], view(x))
    if spec[3] == NORM:
        run("norm_sample", NormSampleArgs(*head, salt, address(saved)))
    run("pack", PackArgs(*head, x.shape[1], salt, address(saved)))
    return saved


def decode(saved: np.ndarray, dtype: str, spec, rows: int, features: int, tile: int, out: np.ndarray):
    begin = tile * len(out)
    run(
        "decode",
        DecodeArgs(
            Exec(),
            SketchSpec(*spec),
            DTYPES[dtype],
            False,
            rows,
            features,
            address(saved),
            begin,
            begin + len(out),
            address(out),
        ),
    )
    return out


def signs(spec, dtype: str, features: int, key: int, salt: int, out: np.ndarray) -> np.ndarray:
    trailer = trailer_of(key, salt)
    run(
        "signs",
        SignsArgs(
            Exec(), SketchSpec(*spec), DTYPES[dtype], address(trailer), features, 0, len(out), address(out)
        ),
    )
    return out


def dropout(
    x: np.ndarray, dtype: str, threshold: int, scale: float, trailer: np.ndarray, salt: int
) -> np.ndarray:
    """Forward completes the trailer with a salt of at least 0; backward, with -1, reads it there."""
    y = np.empty_like(x)
    run(
        "dropout",
        DropoutArgs(
            Exec(), DTYPES[dtype], address(trailer), salt, threshold, scale, address(x), address(y), x.size
        ),
    )
    return y


def unpack(saved: np.ndarray, dtype: str, spec, rows: int, features: int, out: np.ndarray) -> np.ndarray:
    run(
        "unpack",
        UnpackArgs(Exec(), SketchSpec(*spec), DTYPES[dtype], rows, features, address(saved), address(out)),
    )
    return out


def linear_wgrad(dy: np.ndarray, saved: np.ndarray, dtype: str, spec, features: int) -> np.ndarray:
    dw = np.empty((dy.shape[1], features), dy.dtype)
    run(
        "linear_wgrad",
        LinearWgradArgs(
            Exec(), SketchSpec(*spec), DTYPES[dtype], view(dy), features, address(saved), address(dw)
        ),
    )
    return dw


def gather(
    source: np.ndarray, dtype: str, index: np.ndarray, split: int = 0, scale=(1.0, 1.0), weight=None
) -> np.ndarray:
    out = np.empty((len(index), source.shape[1]), source.dtype)
    run(
        "gather",
        GatherArgs(
            Exec(),
            DTYPES[dtype],
            False,
            view(source),
            address(index),
            len(index),
            split,
            scale,
            None if weight is None else address(weight),
            address(out),
        ),
    )
    return out


def scatter(packed: np.ndarray, dtype: str, index: np.ndarray, cols: int, split: int, scale) -> np.ndarray:
    rows, count = packed.shape
    out = np.empty((rows, cols), packed.dtype)
    run(
        "scatter",
        ScatterArgs(
            Exec(),
            DTYPES[dtype],
            rows,
            count,
            cols,
            address(packed),
            address(index),
            split,
            scale,
            address(out),
        ),
    )
    return out


def relu(x: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    y, mask = np.empty_like(x), np.empty(-(-x.size // 32), np.uint32)
    run("relu", ReluArgs(Exec(), DTYPES[dtype], address(x), address(y), address(mask), x.size))
    return y, mask


def masked(dy: np.ndarray, dtype: str, mask: np.ndarray) -> np.ndarray:
    dx = np.empty_like(dy)
    run("masked", MaskedArgs(Exec(), DTYPES[dtype], address(dy), address(mask), address(dx), dy.size))
    return dx
