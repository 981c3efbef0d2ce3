"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file beside `path`, then put it in the place of `path`.

    Raises:
        OSError: the file system refused; an older file at `path` is then as it was.
    """
    # Not by tempfile, whose files only their owner may read.
    temporary = path.with_name(f".{path.stem}-{uuid4().hex}{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # of new files here; some libraries make files of their own
        write(temporary)
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
