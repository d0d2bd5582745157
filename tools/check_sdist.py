"""Builds an sdist and from it a wheel, installs the wheel into an empty folder and trains a step from there,
with torch, numpy and what these require in reach, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq"]
PROBE = """
import importlib.util, pathlib, sys
import rad_kernels
assert pathlib.Path(rad_kernels.__file__).is_relative_to(sys.argv[1]), rad_kernels.__file__
import torch
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64))
rad_kernels.convert(model, {"0": rad_kernels.Sketch(0.1), "2": rad_kernels.Sketch(1, bits=4)})
optimizer = torch.optim.SGD(model.parameters(), 0.1)
model(torch.randn(128, 64)).square().mean().backward()
optimizer.step()
assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
absent = [name for name in ("rich", "matplotlib", "pytest", "sklearn") if importlib.util.find_spec(name)]
assert not absent, f"the environment is not empty: {absent}"
print(rad_kernels.show_config())
"""
CORE = ("torch", "numpy")


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """What the command printed; if it fails, that is the message to stop with."""
    done = subprocess.run(
        command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed with status {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout


def sources() -> set[str]:
    """What somebody who builds and tests from the sdist needs."""
    folders = ["csrc", "rad_kernels", "tests", "requirements", "tools"]
    kinds = {".py", ".pyi", ".h", ".cpp", ".cu", ".cuh", ".mk", ".txt", ".typed"}
    found = (p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in kinds)
    return {str(p.relative_to(ROOT)) for p in found if "build" not in p.parts} | {
        "Makefile",
        "LICENSE",
        "README.md",
    }


def link_core(folder: Path) -> None:
    """Links to the files of CORE and, one by another, of all that they require on this machine."""
    folder.mkdir()
    wanted, seen = list(CORE), set()
    while wanted:
        name = re.split(r"[^\w.-]", wanted.pop())[0].lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # required on other machines only
            continue
        for top in {
            file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")
        }:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(found.locate_file(top)))
        wanted += [line for line in found.requires or () if "extra ==" not in line]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        # Metadata left in the checkout would add the files that an earlier MANIFEST.in named.
        aside = ("egg_info", "--egg-base", work)
        run(sys.executable, "setup.py", *aside, "sdist", "--dist-dir", work, cwd=ROOT)
        (sdist,) = work.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            packed = {member.partition("/")[2] for member in archive.getnames()}
        if missing := sorted(sources() - packed):
            sys.exit(f"{sdist.name} lacks {', '.join(missing)}: see MANIFEST.in")
        run(*PIP, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", work, sdist, cwd=work)
        (wheel,) = work.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            inside = {Path(member).parts[0] for member in archive.namelist()}
            typed = "rad_kernels/py.typed" in archive.namelist()
        if not typed or any(p != "rad_kernels" and not p.endswith(".dist-info") for p in inside):
            sys.exit(f"{wheel.name} holds {sorted(inside)}, py.typed: {typed}")
        run(*PIP, "install", "--no-deps", "--target", work / "site", wheel, cwd=work)
        link_core(work / "core")
        environment = os.environ | {"PYTHONPATH": f"{work / 'site'}{os.pathsep}{work / 'core'}"}
        # -S: without this machine's site-packages.
        print(run(sys.executable, "-S", "-c", PROBE, work / "site", cwd=work, env=environment), end="")
        for file in (sdist, wheel):
            print(f"{file.name}: {file.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
