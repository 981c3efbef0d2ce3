"""Versions of torch: which one wrote a file, and whether it is this one."""

from __future__ import annotations

import torch


def versions_differ(saved: str) -> str | None:
    """What to say of a file that was written with another minor version of torch, if it was."""
    if saved.split(".")[:2] == torch.__version__.split(".")[:2]:
        return None
    return (
        f"the file was written with torch {saved}, this is torch {torch.__version__}: compare "
        "outputs before you rely on them"
    )
