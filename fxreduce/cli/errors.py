"""What the command line itself refuses, and the sentences that several of its parts share."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from fxreduce.errors import FxReduceError, UnsupportedError


class UsageError(FxReduceError):
    """An argument names a file, a folder or a value that cannot be used."""


def unknown_name(what: str, name: str, known: Iterable[str], listing: str) -> UnsupportedError:
    """The error that says `what`, with the `known` names closest to `name`, or else a `listing`."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.6)
    advice = f"did you mean {' or '.join(close)}?" if close else listing
    return UnsupportedError(f"{what}; {advice}")
