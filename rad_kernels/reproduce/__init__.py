"""``python -m rad_kernels reproduce``: figures of the paper, measured."""

from .cli import register

__all__ = ["register"]
