"""Merging approximately: which convolutions that removals bring together become one cropped one."""

from __future__ import annotations

from collections.abc import Collection

from torch.fx import GraphModule

from fxreduce.graph.rectifiers import find_sites
from fxreduce.graph.values import VALUE, by_value, crosses
from fxreduce.operators.cost import CostModel
from fxreduce.passes.base import Pipeline, run_pipeline
from fxreduce.passes.crop_kernels import CropKernels, dearer
from fxreduce.passes.fuse_padded import Pair, match
from fxreduce.passes.pipeline import fusion, unfinished


class Crops:
    """Finds the convolutions to crop, and crops them.

    Args:
        original: with all its rectifiers, its values named.
    """

    def __init__(self, original: GraphModule) -> None:
        self._named = by_value(original)
        self._sites = {site.name: site.node for site in find_sites(original)}

    def cropped(
        self,
        graph_module: GraphModule,
        removed: Collection[str],
        cost: CostModel,
        disable: Collection[str] = (),
    ) -> tuple[tuple[str, ...], GraphModule]:
        """The values of the convolutions that are cropped, and the graph with these.

        All is merged that is exact and pays, but for what is done at last.
        """
        merged = run_pipeline(graph_module, unfinished(cost), disable=disable).graph_module
        values = self._between(merged, removed, cost)
        return values, CropKernels(values).run(merged).graph_module

    def _between(
        self, merged: GraphModule, removed: Collection[str], cost: CostModel
    ) -> tuple[str, ...]:
        """The values of convolutions that pay as one with what a removed site stood behind."""
        nodes = {self._sites[name] for name in removed}
        found = []
        for node in merged.graph.nodes:
            value, pair = node.meta.get(VALUE), match(merged, node)
            if not isinstance(pair, Pair) or value not in self._named:
                continue
            start = pair.first.node.meta.get(VALUE)
            if crosses(self._named[value], start, nodes) and not dearer(pair, cost):
                found.append(value)
        return tuple(found)


def cropping(values: tuple[str, ...], cost: CostModel) -> Pipeline:
    """The passes that merge what is exact, then what `CropKernels` makes of the named values."""
    return (*unfinished(cost), CropKernels(values)) if values else ()


def merge_cropping(
    graph_module: GraphModule,
    crops: Crops | None,
    removed: Collection[str],
    cost: CostModel,
    disable: Collection[str] = (),
) -> GraphModule:
    """The graph with all merged that pays, approximately too where there are `crops`."""
    if crops is not None:
        _, graph_module = crops.cropped(graph_module, removed, cost, disable)
    return run_pipeline(graph_module, fusion(cost), disable=disable).graph_module
