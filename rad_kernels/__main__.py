"""``python -m rad_kernels``: each sub-command adds itself to the parser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from . import __version__, bench, demo, reproduce, show_config
from .profile.cli import register as register_profile


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line on stderr and exit code 2; argparse would print its usage as well."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see --help)\n")


def _register_info(commands: Any) -> None:
    parser = commands.add_parser("info", help="versions, what was compiled, and what this process uses")
    parser.set_defaults(run=_info)


def _info(_args: argparse.Namespace) -> int:
    print(show_config())
    return 0


COMMANDS: tuple[Callable[[Any], None], ...] = (
    _register_info,
    demo.register,
    bench.register,
    reproduce.register,
    register_profile,
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _Parser(
        prog="python -m rad_kernels",
        description="Randomized automatic differentiation for PyTorch.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="command")
    for register in COMMANDS:
        register(commands)
    args = parser.parse_args(arguments)
    if "run" not in args:
        parser.print_help()
        return 0
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
