"""Fitting a network's weights, before it is trained again, to what it computed before a removal."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from torch.fx import GraphModule

from fxreduce.calibration.batches import Calibration
from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.nodes import module_of
from fxreduce.graph.values import by_value, name_values
from fxreduce.operators.affine import Conv
from fxreduce.passes.refit import refitted
from fxreduce.planning.refit import output_error, refit
from fxreduce.schedules.network import Network, plain_copy


def refit_network(
    network: Network, before: GraphModule, calibration: Calibration, scope: str
) -> dict[str, str]:
    """Fit the weights of convolutions and linears behind the removed sites, in place.

    An operator without bias gets one. Weights stay where fitting does not lower the error of the
    output on held-out batches, where they are masked, and where a layer is called several times.

    Args:
        before: the network without the removal, its masked weights plain.
        calibration: with held-out batches.
        scope: see `fxreduce.planning.refit.refit`.

    Returns:
        Why weights stay, by operator.
    """
    original, now = before, plain_copy(network.module)
    name_values(original)
    name_values(now)
    error = output_error(original, now, calibration)
    fitted = refit(original, now, now, calibration, error, scope)
    named = by_value(now)
    calls = Counter(str(node.target) for node in now.graph.nodes if node.op == "call_module")
    reasons = {each.where: each.reason for each in fitted.refusals}
    for value, matrices in fitted.weights.items():
        node = named[value]
        call, path = read_affine(now, node), str(node.target)
        if not isinstance(call, AffineCall) or not isinstance(call.operator, Conv):
            reasons[value] = "its map is left to training"
        elif not isinstance(module_of(now, node), (nn.Linear, nn.modules.conv._ConvNd)):
            reasons[value] = "its weights belong to no module"
        elif calls[path] > 1:
            reasons[value] = f"{path} is called {calls[path]} times with the same weights"
        else:
            operator = refitted(call.operator, matrices)
            assert isinstance(operator, Conv)  # as it was one before
            _write(network, path, operator)
    return reasons


@torch.no_grad()
def _write(network: Network, path: str, operator: Conv) -> None:
    weight = network.module.get_submodule(path).weight
    assert isinstance(weight, nn.Parameter)  # as masked layers are not fitted
    weight.copy_(operator.weight)
    if operator.bias is not None:
        network.add_bias(path).copy_(operator.bias)
