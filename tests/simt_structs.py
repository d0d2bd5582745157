"""The argument structs of csrc/kernels.h for ctypes; simt.py checks their sizes against the library."""

from ctypes import (
    Structure,
    c_bool,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_uint32,
    c_uint64,
    c_void_p,
)


def struct(name: str, **fields) -> type[Structure]:
    return type(name, (Structure,), {"_fields_": list(fields.items())})


Exec = struct("Exec", parallel=c_void_p, threads=c_int, stream=c_void_p)
SketchSpec = struct("SketchSpec", num=c_int64, den=c_int64, sampling=c_int32, draw=c_int32, bits=c_int32)
MatrixView = struct(
    "MatrixView",
    data=c_void_p,
    rows=c_int64,
    cols=c_int64,
    col_stride=c_int64,
    size=c_int64 * 3,
    stride=c_int64 * 3,
)
SampleArgs = struct(
    "SampleArgs",
    exec=Exec,
    spec=SketchSpec,
    trailer=c_void_p,
    n=c_int64,
    outer=c_int64,
    lines=c_int64,
    index=c_void_p,
    workspace=c_void_p,
)
NormSampleArgs = struct(
    "NormSampleArgs",
    exec=Exec,
    spec=SketchSpec,
    dtype=c_int32,
    x=MatrixView,
    salt=c_uint64,
    saved=c_void_p,
    workspace=c_void_p,
)
PackArgs = struct(
    "PackArgs",
    exec=Exec,
    spec=SketchSpec,
    dtype=c_int32,
    x=MatrixView,
    features=c_int64,
    salt=c_uint64,
    saved=c_void_p,
    workspace=c_void_p,
)
DecodeArgs = struct(
    "DecodeArgs",
    exec=Exec,
    spec=SketchSpec,
    dtype=c_int32,
    widen=c_bool,
    rows=c_int64,
    features=c_int64,
    saved=c_void_p,
    begin=c_int64,
    end=c_int64,
    out=c_void_p,
)
SignsArgs = struct(
    "SignsArgs",
    exec=Exec,
    spec=SketchSpec,
    dtype=c_int32,
    trailer=c_void_p,
    features=c_int64,
    begin=c_int64,
    end=c_int64,
    out=c_void_p,
)
UnpackArgs = struct(
    "UnpackArgs",
    exec=Exec,
    spec=SketchSpec,
    dtype=c_int32,
    rows=c_int64,
    features=c_int64,
    saved=c_void_p,
    out=c_void_p,
    workspace=c_void_p,
)
GatherArgs = struct(
    "GatherArgs",
    exec=Exec,
    dtype=c_int32,
    widen=c_bool,
    source=MatrixView,
    index=c_void_p,
    count=c_int64,
    split=c_int64,
    scale=c_double * 2,
    weight=c_void_p,
    out=c_void_p,
)
ScatterArgs = struct(
    "ScatterArgs",
    exec=Exec,
    dtype=c_int32,
    rows=c_int64,
    count=c_int64,
    cols=c_int64,
    packed=c_void_p,
    index=c_void_p,
    split=c_int64,
    scale=c_double * 2,
    out=c_void_p,
)
LinearWgradArgs = struct(
    "LinearWgradArgs",
    exec=Exec,
    spec=SketchSpec,
    dtype=c_int32,
    dy=MatrixView,
    features=c_int64,
    saved=c_void_p,
    dw=c_void_p,
    workspace=c_void_p,
)
ReluArgs = struct("ReluArgs", exec=Exec, dtype=c_int32, x=c_void_p, y=c_void_p, mask=c_void_p, n=c_int64)
MaskedArgs = struct(
    "MaskedArgs", exec=Exec, dtype=c_int32, dy=c_void_p, mask=c_void_p, dx=c_void_p, n=c_int64
)

DropoutArgs = struct(
    "DropoutArgs",
    exec=Exec,
    dtype=c_int32,
    trailer=c_void_p,
    salt=c_int64,
    threshold=c_uint32,
    scale=c_float,
    x=c_void_p,
    y=c_void_p,
    n=c_int64,
)

# In the order of simt_sizeof.
ARGS = (
    SampleArgs,
    NormSampleArgs,
    PackArgs,
    UnpackArgs,
    DecodeArgs,
    SignsArgs,
    GatherArgs,
    ScatterArgs,
    LinearWgradArgs,
    ReluArgs,
    MaskedArgs,
    DropoutArgs,
)

Layout = struct(
    "SavedLayout",
    tiles=c_int64,
    lines=c_int64,
    width=c_int64,
    last_width=c_int64,
    item=c_int64,
    bits=c_int64,
    lo=c_int64,
    step=c_int64,
    index=c_int64,
    weight=c_int64,
    trailer=c_int64,
    nbytes=c_int64,
    gap_begin=c_int64 * 5,
    gap_end=c_int64 * 5,
)
