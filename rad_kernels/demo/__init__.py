"""``python -m rad_kernels demo``: the paper's network on real digits, methods side by side."""

from .cli import register

__all__ = ["register"]
