"""``python -m rad_kernels reproduce fair``: ways to save memory side by side, in equal measured bytes."""

from .cli import add_arguments, run

__all__ = ["add_arguments", "run"]
