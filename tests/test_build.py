"""The binary, the build script and the tools around them."""

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import rad_kernels
from rad_kernels import _C

ROOT = Path(__file__).resolve().parent.parent


def load(path: str) -> ModuleType:
    """A script of the checkout as a module, without running its main."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load("setup.py")
cuda_include = load("tools/cuda_include.py")


# ---- the binary ----


def undefined_symbols() -> list[str]:
    return subprocess.check_output(["nm", "-D", "--undefined-only", _C.__file__], text=True).split()


def test_facts_of_the_binary():
    assert isinstance(_C.has_cuda, bool)
    assert bool(_C.cuda_archs) == _C.has_cuda
    assert re.fullmatch(r"2\.\d+\.\d+.*", _C.built_with_torch)
    assert rad_kernels.__version__ in rad_kernels.show_config()


def test_stub_matches_the_binary():
    """Same names, and for functions the same parameters in the same order."""
    stub: dict[str, list[str] | None] = {}
    for node in ast.parse((ROOT / "rad_kernels/_C.pyi").read_text()).body:
        if isinstance(node, ast.AnnAssign):
            stub[node.target.id] = None
        elif isinstance(node, ast.FunctionDef):
            stub[node.name] = [arg.arg for arg in node.args.args]
    binary: dict[str, list[str] | None] = {}
    for name in vars(_C):
        if not name.startswith("__"):
            signature = getattr(_C, name).__doc__.splitlines()[0] if callable(getattr(_C, name)) else None
            binary[name] = signature and re.findall(r"[(,] ?(\w+): ", signature)
    assert stub == binary


def test_needs_nothing_but_the_stable_abi():
    """torch's C++ names would tie the binary to one minor version; names of libtorch_cuda, to CUDA torch."""
    unstable = re.compile(r"_ZN[KV]*(2at|3c10|5torch)|(aoti_)?torch_\w*cuda\w")
    names = undefined_symbols()
    assert [name for name in names if unstable.match(name)] == []
    assert any(name.startswith("aoti_torch_") for name in names)


def test_exports_only_the_module():
    listed = subprocess.check_output(["nm", "-D", "--defined-only", _C.__file__], text=True)
    functions = [line.split()[2] for line in listed.splitlines() if line.split()[1] == "T"]
    assert functions == ["PyInit__C"]


@pytest.mark.skipif("RAD_KERNELS_DEBUG" in os.environ, reason="line numbers come with file names")
def test_binary_does_not_name_the_build_folder():
    assert str(ROOT).encode() not in Path(_C.__file__).read_bytes()


def test_version_has_one_source():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {rad_kernels.__version__}\n" in citation
    try:
        installed = importlib.metadata.version("rad_kernels")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed, only built in place: there is no metadata to compare")
    assert installed == rad_kernels.__version__


def test_unloadable_binary_says_how_to_build(tmp_path):
    shutil.copytree(ROOT / "rad_kernels", tmp_path / "rad_kernels", ignore=shutil.ignore_patterns("*.so"))
    (tmp_path / "rad_kernels" / Path(_C.__file__).name).write_bytes(b"built for something else")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import rad_kernels"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert failed.returncode == 1
    assert "pip install --no-build-isolation -e ." in failed.stderr.splitlines()[-1]


# ---- setup.py ----


def torch_like(cuda: str | None, capabilities: tuple[tuple[int, int], ...] = ()) -> SimpleNamespace:
    gpus = {"device_count": lambda: len(capabilities), "get_device_capability": capabilities.__getitem__}
    return SimpleNamespace(version=SimpleNamespace(cuda=cuda), cuda=SimpleNamespace(**gpus))


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """A toolkit folder whose nvcc knows all but the newest architecture of the portable list."""
    for name in ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "bin/nvcc").write_text("#!/bin/sh\necho compute_80; echo compute_90; echo compute_100\n")
    (tmp_path / "bin/nvcc").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    return build.find_toolkit()


def test_cuda_home_is_searched_first(toolkit, tmp_path):
    assert toolkit.home == tmp_path
    assert toolkit.cudart == tmp_path / "lib64/libcudart.so"


def test_auto_follows_torch_not_the_gpu(toolkit, monkeypatch):
    monkeypatch.delenv("RAD_KERNELS_WITH_CUDA", raising=False)
    assert build.wanted_toolkit(torch_like(cuda="13.0")) == toolkit
    assert build.wanted_toolkit(torch_like(cuda=None, capabilities=((9, 0),))) is None


def test_cuda_can_be_forced_and_refused(toolkit, monkeypatch):
    monkeypatch.setenv("RAD_KERNELS_WITH_CUDA", "1")
    assert build.wanted_toolkit(torch_like(cuda=None)) == toolkit
    monkeypatch.setenv("RAD_KERNELS_WITH_CUDA", "0")
    assert build.wanted_toolkit(torch_like(cuda="13.0")) is None
    monkeypatch.setenv("RAD_KERNELS_WITH_CUDA", "yes")
    with pytest.raises(SystemExit, match="must be auto, 1 or 0, got 'yes'"):
        build.wanted_toolkit(torch_like(cuda="13.0"))


def test_missing_toolkit(monkeypatch, capsys):
    monkeypatch.setattr(build, "find_toolkit", lambda: None)
    monkeypatch.setenv("RAD_KERNELS_WITH_CUDA", "auto")
    assert build.wanted_toolkit(torch_like(cuda="13.0")) is None
    assert "WARNING: building the CPU backend only" in capsys.readouterr().err
    monkeypatch.setenv("RAD_KERNELS_WITH_CUDA", "1")
    with pytest.raises(SystemExit, match="no CUDA toolkit"):
        build.wanted_toolkit(torch_like(cuda=None))


@pytest.mark.parametrize(
    ("listed", "capabilities", "expected"),
    [
        (None, (), ["8.0", "9.0a", "10.0"]),  # what this nvcc knows of the portable list
        (None, ((9, 0), (8, 0), (9, 0)), ["8.0", "9.0a"]),
        ("8.6 9.0+PTX", (), ["8.6", "9.0a+PTX"]),
        ("8.0;9.0a;12.0+PTX", ((9, 0),), ["8.0", "9.0a", "12.0+PTX"]),
    ],
)
def test_architectures(toolkit, monkeypatch, listed, capabilities, expected):
    if listed:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert build.cuda_archs(torch_like("13.0", capabilities), toolkit) == expected


def test_unknown_architecture_is_named(toolkit, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;Hopper")
    with pytest.raises(SystemExit, match="got 'Hopper'"):
        build.cuda_archs(torch_like("13.0"), toolkit)


def test_gencode():
    assert build.gencode(["9.0a", "12.0+PTX"]) == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


# ---- tools ----


def test_cuda_headers_must_be_complete(tmp_path, monkeypatch):
    names = [*cuda_include.HEADERS, "cccl/nv/target"]
    for name in names:
        (tmp_path / "include" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "include" / name).touch()
    include = tmp_path / "include"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert cuda_include.toolkit_dirs() == [include, include / "cccl"]
    for name in names:
        (include / name).unlink()
        assert cuda_include.with_cccl(include) == []
        (include / name).touch()


PTXAS_LOG = """\
ptxas info    : Compiling entry function '_ZN3rad4packIfEEvPT_' for 'sm_90a'
    0 bytes stack frame, {spill} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 1024 bytes smem, 416 bytes cmem[0]
"""


@pytest.mark.parametrize("spill", [0, 8])
def test_spilled_registers_fail_the_report(tmp_path, spill):
    log = tmp_path / "sm_90a" / "pack.log"
    log.parent.mkdir()
    log.write_text(PTXAS_LOG.format(spill=spill))
    report = [sys.executable, ROOT / "tools/kernel_resources.py", log]
    result = subprocess.run(report, capture_output=True, text=True)
    assert result.returncode == (1 if spill else 0)
    assert re.search(r"pack: pack<float> +24\+1024", result.stdout)
    assert result.stderr == ("sm_90a pack: pack<float> spills 8 bytes\n" if spill else "")


def test_serialised_wgmma_fails_the_report(tmp_path):
    log = tmp_path / "sm_90a" / "pack.log"
    log.parent.mkdir()
    loss = "Potential Performance Loss: wgmma.mma_async instructions are serialized due to a function call"
    log.write_text(PTXAS_LOG.format(spill=0) + f"ptxas info    : (C7510) {loss} in 'pack'\n")
    report = [sys.executable, ROOT / "tools/kernel_resources.py", log]
    result = subprocess.run(report, capture_output=True, text=True)
    assert result.returncode == 1
    assert loss in result.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_help_lists_every_target():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    shown = subprocess.check_output(["make", "-C", ROOT, "help"], text=True, env=environment)
    targets = set(re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), flags=re.M)) - {"FORCE"}
    assert {"demo", "test"} <= targets
    assert targets == set(re.findall(r"^  ([a-z-]+) +\S", shown, flags=re.M))
