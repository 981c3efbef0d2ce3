"""Which convolution or linear feeds a rectifier: the one whose weights make its pre-activation.

The walk goes back from the rectifier through calls that read one value: batch-norm, dropout,
constants, pooling and what moves values. At a sum it takes the branch with the longest chain of
operators, which in a residual block ends in the block's last convolution, not the shortcut's.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule, Node

from fxreduce.graph.affine import read_affine
from fxreduce.graph.nodes import label, module_of, operation
from fxreduce.graph.rectifiers import Site, read_rectifier
from fxreduce.operators.affine import Refusal

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_LAYER_CALLS = {"linear", *(f"conv{rank}d" for rank in (1, 2, 3)), "convolution"}
_LAYER_CALLS |= {f"conv_transpose{rank}d" for rank in (1, 2, 3)}
_SUMS = ("add", "add_")


@dataclass(frozen=True)
class Feed:
    """The layer that feeds a site.

    Attributes:
        path: of the module; shared modules feed several sites.
        channels: how many output channels it has.
        channel_axis: that of the output channels in its weight.
    """

    path: str
    channels: int
    channel_axis: int


class Feeding:
    """Finds the layers that feed the sites of a graph module, which is read only."""

    def __init__(self, graph_module: GraphModule) -> None:
        self._graph_module = graph_module
        self._depths: dict[Node, int] = {}
        for node in graph_module.graph.nodes:
            before = max((self._depths[given] for given in node.all_input_nodes), default=0)
            self._depths[node] = before + self._is_layer(node)

    def of(self, site: Site) -> Feed | Refusal:
        """The layer whose weights make the site's pre-activation; why there is none, if so."""
        node = site.rectifier.input
        while not self._is_layer(node):
            given = self._before(node)
            if isinstance(given, Refusal):
                return given
            node = given
        module = module_of(self._graph_module, node)
        if not isinstance(module, _LAYERS):
            return Refusal(f"the weights of {label(node)}, which feeds it, belong to no module")
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        if transposed and module.groups != 1:
            return Refusal(f"{label(node)}, which feeds it, is transposed and has groups")
        axis = int(transposed)
        return Feed(str(node.target), module.weight.shape[axis], axis)

    def _before(self, node: Node) -> Node | Refusal:
        """The value to go on with from a node that is no layer."""
        given = [each for each in node.all_input_nodes if each.op != "get_attr"]
        if node.op == "placeholder" or not given:
            return Refusal("no convolution or linear feeds it")
        if read_rectifier(self._graph_module, node) is not None:
            return Refusal(f"the rectifier {label(node)} feeds it")
        if len(given) > 1 and operation(node) not in _SUMS:
            return Refusal(f"{label(node)}, which feeds it, joins several values")
        return max(given, key=self._depths.__getitem__)

    def _is_layer(self, node: Node) -> bool:
        if isinstance(module_of(self._graph_module, node), _LAYERS):
            return True
        return operation(node) in _LAYER_CALLS and read_affine(self._graph_module, node) is not None
