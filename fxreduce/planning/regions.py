"""Which removed sites lie in one affine region."""

from __future__ import annotations

from collections.abc import Collection

import networkx as nx
from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.nodes import operation
from fxreduce.graph.rectifiers import find_sites

Region = tuple[str, ...]


def regions(graph_module: GraphModule, removed: Collection[str]) -> tuple[Region, ...]:
    """The removed sites, grouped by the region of affine operators and sums that joins them.

    Args:
        graph_module: the graph before the removal.
        removed: names of removed sites.
    """
    sites = {site.node: site.name for site in find_sites(graph_module) if site.name in set(removed)}
    graph: nx.Graph[Node] = nx.Graph()
    inside = {n for n in graph_module.graph.nodes if n in sites or _is_affine(graph_module, n)}
    graph.add_nodes_from(inside)
    for node in inside:
        graph.add_edges_from((node, given) for given in node.all_input_nodes if given in inside)
    order = {node: place for place, node in enumerate(graph_module.graph.nodes)}
    grouped = []
    for component in nx.connected_components(graph):
        named = sorted((node for node in component if node in sites), key=order.__getitem__)
        if named:
            grouped.append((order[named[0]], tuple(sites[node] for node in named)))
    return tuple(region for _, region in sorted(grouped))


def _is_affine(graph_module: GraphModule, node: Node) -> bool:
    summed = operation(node) in ("add", "add_") and len(node.all_input_nodes) == 2
    return summed or isinstance(read_affine(graph_module, node), AffineCall)
