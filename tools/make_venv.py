"""Makes or refreshes the checkout's virtual environment: python tools/make_venv.py DIR.

Does nothing when DIR was made from the same requirements by the same Python. Where the invoking Python has a
CUDA build of torch already, DIR sees it (--system-site-packages); elsewhere the pinned torch is installed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import cuda_include

MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 11)
REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"


def cuda_torch() -> ModuleType | None:
    """The invoking Python's torch if it is a CUDA build and recent enough."""
    try:
        import torch
    except ImportError:
        return None
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return torch if torch.version.cuda and version >= MIN_TORCH else None


def requirement_files(torch: ModuleType | None) -> list[Path]:
    names = ["dev.txt", "ecosystem.txt"]
    if torch is None:
        names.append("torch.txt")
    if not cuda_include.toolkit_dirs():
        names.append("cuda-headers.txt")
    return [REQUIREMENTS / name for name in names]


def fingerprint(files: list[Path]) -> str:
    state = hashlib.sha256()
    for file in [*files, REQUIREMENTS / "constraints.txt"]:
        state.update(file.read_bytes())
    return state.hexdigest()


def create(target: Path, torch: ModuleType | None, clear: bool) -> None:
    try:
        venv.create(target, with_pip=True, system_site_packages=torch is not None, clear=clear)
    except (subprocess.CalledProcessError, ImportError) as error:
        sys.exit(f"could not make a virtual environment ({error}); Debian: apt-get install python3-venv")
    if torch is not None and sys.prefix != sys.base_prefix:
        # The system's packages are not those of the virtual environment that we were started from.
        (site,) = target.glob("lib/python*/site-packages")
        (site / "torch_of_parent.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")


def main(target: Path) -> None:
    if sys.version_info < MIN_PYTHON:
        version = sys.version.split()[0]
        sys.exit(
            f"Python >= 3.11 is needed, {sys.executable} is {version}: make PYTHON=python3.12 names another"
        )
    torch = cuda_torch()
    base = f"Python {sys.version.split()[0]}, {f'torch {torch.__version__}' if torch else 'own torch'}"
    files = requirement_files(torch)
    wanted = f"{base}\n{fingerprint(files)}\n"
    stamp = target / ".requirements"
    found = stamp.read_text() if stamp.exists() else ""
    if found == wanted:
        stamp.touch()
        return
    other_base = bool(found) and not found.startswith(base + "\n")
    if other_base or not (target / "bin/python").exists():
        print(f"making {target} ({base})", flush=True)
        create(target, torch, clear=other_base)
    print("installing " + ", ".join(f"requirements/{file.name}" for file in files), flush=True)
    pip = [target / "bin/python", "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    pip += ["--constraint", REQUIREMENTS / "constraints.txt"]
    for file in files:
        pip += ["--requirement", file]
    if status := subprocess.run(pip).returncode:
        sys.exit(status)
    stamp.write_text(wanted)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
