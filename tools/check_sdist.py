"""Builds an sdist and from it a wheel, installs the wheel into an empty folder and imports it from there."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq"]
PROBE = """
import pathlib, sys
import rad_kernels
assert pathlib.Path(rad_kernels.__file__).is_relative_to(sys.argv[1]), rad_kernels.__file__
print(rad_kernels.show_config())
"""


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


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        # Metadata left in the checkout would add the files that an earlier MANIFEST.in named.
        metadata = ("egg_info", "--egg-base", work)
        run(sys.executable, "setup.py", *metadata, "sdist", "--dist-dir", work, cwd=ROOT)
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
        environment = os.environ | {"PYTHONPATH": str(work / "site")}
        print(run(sys.executable, "-c", PROBE, work / "site", cwd=work, env=environment), end="")
        for file in (sdist, wheel):
            print(f"{file.name}: {file.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
