"""Fitting a network's weights, before it is trained again, to what it computed before a removal.

Rectifiers of which little is left have to be made up for by the differences of large weights: where
one goes, the fit can make a layer's weights several times as large, round after round. A batch-norm
behind the layer undoes any scale of its rows w, so that what w computes stays; but a step of the
learning rate η then turns it by η/‖w‖² only, and the layer hardly trains any more. So rows that a
batch-norm reads keep the norm that training has found, and its statistics scale along. Nor may the
fit rest on differences so small that the first steps of training, which move all features, undo
it: it has to bear noise on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from fxreduce.calibration.batches import Calibration
from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.nodes import module_of
from fxreduce.graph.values import by_value, name_values
from fxreduce.operators.affine import Conv
from fxreduce.operators.ridge import Tether
from fxreduce.passes.refit import refitted
from fxreduce.planning.held_out import output_error
from fxreduce.planning.refit import refit
from fxreduce.schedules.network import Network, plain_copy

# The noise has a tenth of the features' mean square.
_TETHER = Tether(least=0.1, even=1.0)
# What a second sweep would still gain, training gains as well.
_SWEEPS = 1


def refit_network(
    network: Network, before: GraphModule, calibration: Calibration, scope: str
) -> dict[str, str]:
    """Fit the weights of convolutions and linears behind the removed sites, in place.

    An operator without bias gets one. Rows that a batch-norm reads keep their norm. Weights stay
    where fitting does not lower the error of the output on held-out batches, where they are masked,
    and where a layer is called several times.

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
    fitted = refit(original, now, now, calibration, error, scope, sweeps=_SWEEPS, tether=_TETHER)
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
            _write(network, path, operator, _norm_behind(now, node, calls))
    return reasons


@torch.no_grad()
def _write(network: Network, path: str, operator: Conv, norm: str | None) -> None:
    """Set a layer's weights; with the path of the batch-norm that alone reads it, up to scale."""
    weight = network.module.get_submodule(path).weight
    assert isinstance(weight, nn.Parameter)  # as masked layers are not fitted
    scale = operator.weight.new_ones(len(weight))
    if norm is not None:
        scale = _row_norms(weight.to(operator.weight)) / _row_norms(operator.weight)
        scale = torch.where(scale.isfinite() & (scale > 0), scale, 1.0)
        _scale_statistics(network.module.get_submodule(norm), scale)
    weight.copy_(operator.weight * scale.view(-1, *[1] * (weight.dim() - 1)))
    if operator.bias is not None:
        network.add_bias(path).copy_(operator.bias * scale)


def _norm_behind(graph_module: GraphModule, node: Node, calls: Mapping[str, int]) -> str | None:
    """The path of the batch-norm that is all that reads a node's value."""
    readers = list(node.users)
    if len(readers) != 1 or not isinstance(module_of(graph_module, readers[0]), _BatchNorm):
        return None
    if isinstance(module_of(graph_module, node), nn.Linear):
        return None  # on tokens its rows are not the axis that a batch-norm normalises
    path = str(readers[0].target)
    return path if calls[path] == 1 else None


def _row_norms(weight: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return norms


def _scale_statistics(norm: nn.Module, scale: Tensor) -> None:
    """Let a batch-norm normalise values that are `scale` times what they were, per channel."""
    assert isinstance(norm, _BatchNorm)  # as `_norm_behind` has found it
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.mul_(scale.to(norm.running_mean))
        norm.running_var.mul_(scale.square().to(norm.running_var))
