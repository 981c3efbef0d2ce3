"""Which changes of weights a compiled model does not see, side by side.

    python -m tests.backend.staleness

Inductor with freezing bakes the weights in, and is not told when they change; fxreduce folds them
from the arguments of each call, and with freeze=True raises an error.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch._inductor import config

import fxreduce
from fxreduce.graph.compare import difference, tolerance
from fxreduce.report.table import table
from tests.backend.compiling import image, network
from tests.backend.test_changing_weights import UPDATES


def write_through_data(model: nn.Module) -> None:
    model.blocks[0].conv.weight.data.mul_(1.5)


CHANGES: dict[str, Callable[[nn.Module], nn.Module | None]] = {
    **UPDATES,
    "a second model of the class": lambda _: network(),
    "written through .data": write_through_data,
}
BACKENDS = {
    "inductor, freezing": lambda: "inductor",
    "fxreduce": lambda: fxreduce.backend(),
    "fxreduce, by_value": lambda: fxreduce.backend(by_value=True),
    "fxreduce, freeze": lambda: fxreduce.backend(freeze=True),
}


@torch.no_grad()
def outcome(change: Callable[[nn.Module], nn.Module | None], name: str) -> str:
    """What a compiled model computes after a change: what it should, what it did, or neither."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model, x, backend = network(), image(), BACKENDS[name]()
    # Frozen weights in double precision are more than oneDNN's kernels take.
    frozen = config.patch(freezing=name.startswith("inductor"))
    with frozen, torch.backends.mkldnn.flags(enabled=False):
        before = torch.compile(model, backend=backend)(x)
        changed = change(model) or model
        try:
            seen = torch.compile(changed, backend=backend)(x)
        except fxreduce.WeightsChangedError:
            return "an error"
    allowed = tolerance(torch.float64)
    if difference(changed(x), seen).max_rel <= allowed:
        return "right"
    return "stale" if difference(before, seen).max_rel <= allowed else "wrong"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("changes", nargs="*", help="(all)")
    names = parser.parse_args(given).changes or list(CHANGES)
    warnings.filterwarnings("ignore", "TF32 acceleration")  # the flags above ask for it
    rows = [(name, *(outcome(CHANGES[name], each) for each in BACKENDS)) for name in names]
    print(table(("after", *BACKENDS), rows, left=1 + len(BACKENDS)))


if __name__ == "__main__":
    main()
