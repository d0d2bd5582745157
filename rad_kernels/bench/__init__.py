"""``python -m rad_kernels bench``: time, memory and variance of the sketches beside torch and others."""

from .cli import register

__all__ = ["register"]
