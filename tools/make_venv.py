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

import cuda_include

MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 11)
REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"


def system_cuda_torch() -> str:
    """The version of the invoking Python's torch if it is a CUDA build and recent enough, else ''."""
    try:
        import torch
    except ImportError:
        return ""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return torch.__version__ if torch.version.cuda and version >= MIN_TORCH else ""


def requirement_files(use_system_torch: bool) -> list[Path]:
    names = ["dev.txt"]
    if not use_system_torch:
        names.append("torch.txt")
    if not cuda_include.toolkit_dirs():
        names.append("cuda-headers.txt")
    return [REQUIREMENTS / name for name in names]


def fingerprint(files: list[Path]) -> str:
    state = hashlib.sha256()
    for file in [*files, REQUIREMENTS / "constraints.txt"]:
        state.update(file.read_bytes())
    return state.hexdigest()


def main(target: Path) -> None:
    if sys.version_info < MIN_PYTHON:
        version = sys.version.split()[0]
        sys.exit(
            f"Python >= 3.11 is needed, {sys.executable} is {version}: make PYTHON=python3.12 names another"
        )
    torch_version = system_cuda_torch()
    base = f"Python {sys.version.split()[0]}, {'torch ' + torch_version if torch_version else 'own torch'}"
    files = requirement_files(bool(torch_version))
    wanted = f"{base}\n{fingerprint(files)}\n"
    stamp = target / ".requirements"
    found = stamp.read_text() if stamp.exists() else ""
    if found == wanted:
        stamp.touch()
        return
    other_base = bool(found) and not found.startswith(base + "\n")
    if other_base or not (target / "bin/python").exists():
        print(f"making {target} ({base})", flush=True)
        try:
            venv.create(target, with_pip=True, system_site_packages=bool(torch_version), clear=other_base)
        except (subprocess.CalledProcessError, ImportError) as error:
            sys.exit(f"could not make a virtual environment ({error}); Debian: apt-get install python3-venv")
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
