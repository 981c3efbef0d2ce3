"""Reading a node of any dialect as a concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.layout import trailing_axes
from fxreduce.graph.nodes import argument, is_inplace, label, operation, shape_of
from fxreduce.operators.affine import Refusal
from fxreduce.operators.columns import Span


@dataclass(frozen=True)
class Concatenation:
    """One call that lays values behind one another along an axis, counted from the right."""

    node: Node
    operands: tuple[Node, ...]
    axis: int

    def of(self, operands: Sequence[Node]) -> tuple[Argument, ...]:
        """The arguments of the same call for other operands."""
        return list(operands), self.axis

    def shape_with(self, channels: int) -> tuple[int, ...] | None:
        """The shape that the value has with so many channels along the axis, where it is known."""
        shape = shape_of(self.node)
        if shape is None:
            return None
        place = len(shape) + self.axis
        return (*shape[:place], channels, *shape[place + 1 :])

    def spans(self, graph_module: GraphModule, channels: int) -> tuple[Span, ...] | Refusal:
        """Which of the value's channels each operand is; all together they are `channels`."""
        widths = [self._width(graph_module, operand) for operand in self.operands]
        known = sum(width for width in widths if width is not None)
        if widths.count(None) > 1 or (None not in widths and known != channels):
            return Refusal(
                f"nothing tells how many channels each operand of {label(self.node)} has; capture "
                "the model with example inputs"
            )
        lengths = [channels - known if width is None else width for width in widths]
        return tuple(zip(accumulate(lengths, initial=0), lengths, strict=False))

    def _width(self, graph_module: GraphModule, operand: Node) -> int | None:
        producer, shape = self.producer(graph_module, operand), shape_of(operand)
        if producer is not None:
            return producer.operator.out_channels
        return None if shape is None else shape[self.axis]

    def producer(self, graph_module: GraphModule, operand: Node) -> AffineCall | None:
        """The affine call along the same axis whose value the operand is, if there is one."""
        call = read_affine(graph_module, operand)
        along = isinstance(call, AffineCall) and call.operator.rank == -self.axis - 1
        return call if isinstance(call, AffineCall) and along else None

    def other_readers(self, operand: Node) -> Refusal | None:
        """Why the operand has to stay, if this call alone, and once, does not read it."""
        readers = len(operand.users) - 1 + self.operands.count(operand)
        return Refusal(f"{label(operand)} is read {readers} times") if readers > 1 else None


def read_concatenation(graph_module: GraphModule, node: Node) -> Concatenation | None:
    """The concatenation that the node calls, if it is one along an axis that is known."""
    if operation(node) not in ("cat", "concat", "concatenate") or is_inplace(graph_module, node):
        return None
    operands = argument(node, 0, "tensors")
    axis = argument(node, 1, "dim", node.kwargs.get("axis", 0))
    if not isinstance(operands, (list, tuple)) or not isinstance(axis, int):
        return None
    if not operands or not all(isinstance(each, Node) for each in operands):
        return None
    if axis >= 0:
        shape, right = shape_of(node), trailing_axes(graph_module, node)
        if shape is None and right is None:
            return None
        axis -= len(shape) if shape is not None else (right or 0) + 2
    return Concatenation(node, tuple(operands), axis)


def affine_behind(graph_module: GraphModule, node: Node) -> tuple[AffineCall, Concatenation] | None:
    """The affine call that the node is and the concatenation, along its channels, that it reads."""
    read = (read_concatenation(graph_module, given) for given in node.all_input_nodes)
    wholes = [whole for whole in read if whole is not None]
    call = read_affine(graph_module, node) if wholes else None
    if not isinstance(call, AffineCall):
        return None
    along = (each for each in wholes if each.axis == -call.operator.rank - 1)
    whole = next((each for each in along if each.node is call.input), None)
    return None if whole is None else (call, whole)
