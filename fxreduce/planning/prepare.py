"""From what a user gives to what planning works with."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from fxreduce.calibration.arguments import call_arguments
from fxreduce.calibration.batches import Calibration, DefaultForward, Forward, device_of, to_device
from fxreduce.calibration.loader import Loader
from fxreduce.calibration.ranks import ALONE, Ranks
from fxreduce.errors import CaptureError
from fxreduce.graph.capture import Model, as_module, capture
from fxreduce.planning.example import Example, head, learn_shapes
from fxreduce.planning.fingerprint import digest


def prepare(
    model: Model,
    loader: Loader,
    forward: Forward | None,
    device: torch.device | str | None,
    progress: bool | None,
    ranks: Ranks = ALONE,
) -> tuple[GraphModule, Calibration, Example]:
    """Capture the model, and learn its shapes from the first batch.

    Args:
        ranks: the processes that share the batches.
    """
    loader.share(ranks)
    graph_module = _capture(model, loader, forward)
    if device is not None:
        graph_module = graph_module.to(device)
    if ranks.size > 1:
        advice = (
            "Load the same on each, or torch.distributed.broadcast every tensor of state_dict()"
        )
        ranks.require_same("weights and statistics", digest(graph_module), advice)
    calibration = Calibration.of(graph_module, loader, forward, progress, ranks)
    batch = calibration.first()
    try:
        example = learn_shapes(graph_module, batch, calibration.forward)
    except CaptureError:
        calibration.run(graph_module, 0, batch)  # raises, naming batch and shapes
        raise
    return graph_module, calibration, example


def _capture(model: Model, loader: Loader, forward: Forward | None) -> GraphModule:
    """Capture the model with the first batch, or a few samples of it, as example inputs."""
    module = as_module(model)
    batch = to_device(loader.first(), device_of(module))
    run = forward or DefaultForward.of(module)
    failed: CaptureError | None = None
    for inputs in (head(batch), batch):
        try:
            return capture(model, call_arguments(run, inputs))
        except CaptureError as error:
            failed = error
        except Exception:
            break  # the forward or the loader does not fit, which the first run tells in full
    try:
        return capture(model)  # the batch does not fit, which the first run on it tells in full
    except CaptureError as error:
        raise failed or error from error
