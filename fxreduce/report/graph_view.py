"""What a report keeps of a graph so that it can be drawn: names and shapes, no weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, is_weightless, read_affine
from fxreduce.graph.border_corrected import BorderCorrectedConv
from fxreduce.graph.nodes import label, module_of, operation, shape_of
from fxreduce.graph.recorder import absorbed
from fxreduce.graph.rectifiers import find_sites
from fxreduce.operators.affine import Conv, Operator, Refusal

KINDS = ("input", "output", "affine", "rectifier", "other")


@dataclass(frozen=True)
class NodeView:
    """One node of a graph.

    Attributes:
        label: its name as a site, its module's path or its own name.
        kind: one of `KINDS`.
        text: what it computes, in a few words.
        inputs: the places of its inputs among the nodes of the view.
        shape: of its value; None where it is not known.
        site: its name as a site, where it is one.
        origins: the labels of what merging has put into it.
    """

    label: str
    kind: str
    text: str
    inputs: tuple[int, ...] = ()
    shape: tuple[int, ...] | None = None
    site: str | None = None
    origins: tuple[str, ...] = ()


@dataclass(frozen=True)
class GraphView:
    """The nodes of a graph in order of execution, its constants left out."""

    nodes: tuple[NodeView, ...] = ()


NOTHING = GraphView()


def graph_view(graph_module: GraphModule) -> GraphView:
    """The view of a graph module; it keeps nothing of the module alive."""
    sites = {site.node: site for site in find_sites(graph_module)}
    places: dict[Node, int] = {}
    views: list[NodeView] = []
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            continue
        places[node] = len(views)
        site = sites.get(node)
        kind, text = ("rectifier", site.rectifier.kind) if site else _read(graph_module, node)
        views.append(
            NodeView(
                site.name if site else label(node),
                kind,
                text,
                tuple(places[each] for each in node.all_input_nodes if each in places),
                shape_of(node),
                site.name if site else None,
                absorbed(node),
            )
        )
    return GraphView(tuple(views))


def _read(graph_module: GraphModule, node: Node) -> tuple[str, str]:
    """Kind and text of a node that is no rectifier."""
    if node.op in ("placeholder", "output"):
        kind = "input" if node.op == "placeholder" else "output"
        return kind, kind
    module, call = module_of(graph_module, node), read_affine(graph_module, node)
    name = operation(node) or str(getattr(node.target, "__name__", node.target))
    text = name if module is None else type(module).__name__
    if is_weightless(graph_module, node):
        return "other", text
    if isinstance(call, AffineCall):
        return "affine", f"{text} {_geometry(call.operator)}"
    affine = isinstance(call, Refusal) or isinstance(module, BorderCorrectedConv)
    return "affine" if affine else "other", text


def _geometry(operator: Operator) -> str:
    """Channels, and of a convolution kernel, stride and groups."""
    channels = f"{operator.in_channels} → {operator.out_channels}"
    if not isinstance(operator, Conv):
        return f"[{operator.in_channels}]"
    parts = ["×".join(map(str, operator.kernel)), channels] if operator.rank else [channels]
    if any(each != 1 for each in operator.stride):
        parts.append(f"stride {_once(operator.stride)}")
    if operator.groups > 1:
        parts.append(f"{operator.groups} groups")
    return ", ".join(parts)


def _once(sizes: tuple[int, ...]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else "×".join(map(str, sizes))
