"""`fxreduce completion SHELL`: what makes a shell complete commands, options and their choices."""

from __future__ import annotations

import argparse

from fxreduce.errors import missing_extra

SHELLS = ("bash", "zsh")


def add_completion(parser: argparse.ArgumentParser, whole: argparse.ArgumentParser) -> None:
    """Let a parser print completions of the whole command line.

    Args:
        parser: of the command `completion`.
        whole: the parser that it belongs to.
    """
    parser.description = "Print what makes a shell complete fxreduce's commands and options."
    parser.add_argument("shell", choices=SHELLS, help="the shell to print it for")
    parser.set_defaults(run=lambda arguments: print(completion(whole, arguments.shell)))


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for a shell.

    Raises:
        UnsupportedError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise missing_extra("shtab", "shell completion", "completion") from None
    script: str = shtab.complete(parser, shell=shell)
    return script
