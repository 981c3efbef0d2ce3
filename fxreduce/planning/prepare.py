"""From what a user gives to what planning works with."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from fxreduce.calibration.batches import Calibration, Forward
from fxreduce.calibration.loader import Loader
from fxreduce.errors import CaptureError
from fxreduce.graph.capture import Model, capture
from fxreduce.planning.example import Example, learn_shapes


def prepare(
    model: Model,
    loader: Loader,
    forward: Forward | None,
    device: torch.device | str | None,
    progress: bool | None,
) -> tuple[GraphModule, Calibration, Example]:
    """Capture the model, and learn its shapes from the first batch."""
    graph_module = capture(model)
    if device is not None:
        graph_module = graph_module.to(device)
    calibration = Calibration.of(graph_module, loader, forward, progress)
    batch = calibration.first()
    try:
        example = learn_shapes(graph_module, batch, calibration.forward)
    except CaptureError:
        calibration.run(graph_module, 0, batch)  # raises, naming batch and shapes
        raise
    return graph_module, calibration, example
