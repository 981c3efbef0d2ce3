"""Extensions of installed packages: found through entry points, each group when first needed.

A package names, in the group of what it brings, a function without arguments that registers it:

    [project.entry-points."fxreduce.costs"]
    joules = "my_package:register"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from threading import RLock
from warnings import warn

from fxreduce.errors import first_line

GROUPS = ("rectifiers", "operators", "passes", "importances", "budgets", "costs")

_loaded: set[str] = set()
_lock = RLock()


def load_extensions(group: str) -> None:
    """Let the installed packages register what they bring to a group; once in a process.

    One that cannot be loaded, or whose function raises, is named in a warning and skipped.

    Args:
        group: one of `GROUPS`; the entry points are those of `fxreduce.GROUP`.
    """
    if group in _loaded:
        return
    with _lock:
        if group in _loaded:
            return
        _loaded.add(group)  # before, as what registers may look names up itself
        for entry in entry_points(group=f"fxreduce.{group}"):
            _register(entry)


def _register(entry: EntryPoint) -> None:
    try:
        entry.load()()
    except Exception as error:  # the code is another's, which may raise anything
        owner = "a package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
        warn(
            f"{owner} extends fxreduce by {entry.name!r} of {entry.group} = {entry.value!r}, which "
            f"is skipped, as it failed: {type(error).__name__}: {first_line(error)}. Mend or "
            "uninstall it",
            stacklevel=4,
        )
