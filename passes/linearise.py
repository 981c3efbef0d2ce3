"""Delete rectifiers, each replaced by the identity or by an affine map of each channel.

    identity:  psi(z) -> z                       (EASIER, NEPENTHE)
    channel:   psi(z)_c -> a_c z_c + b_c         (least squares over the calibration data)

    Before: y = relu(bn(x)); z = conv(y)         After: z = conv(bn(x)), or conv(affine(bn(x)))

Not exact. Restrictions: no other value may see the difference where memory is shared. Cost: the
rectifier's memory pass is saved, and what stands around it can be merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar

from torch import Tensor
from torch.fx import GraphModule

from fxreduce.graph.aliases import Aliases
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import label
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.rectifiers import Rectifier, Site, find_sites
from fxreduce.operators.affine import Refusal, ScaleShift
from fxreduce.passes.base import PassResult


@dataclass(frozen=True)
class Linearise:
    """Delete the rectifiers of `sites`; those with a map in `maps` are replaced by it."""

    sites: tuple[str, ...]
    maps: Mapping[str, ScaleShift] = field(default_factory=dict)
    name: ClassVar[str] = "linearise"
    exact: ClassVar[bool] = False

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        wanted = set(self.sites)
        still = recorder.aliases.are_never_overwritten  # nor will they be: nothing is added
        for site in find_sites(recorder.graph_module):
            if site.name not in wanted:
                continue
            refusal = None if still else hazard(recorder.aliases, site.rectifier)
            if refusal is None:
                self._delete(recorder, site)
            else:
                recorder.refuse(site.name, refusal.reason)
        return PassResult.of(recorder)

    def _delete(self, recorder: Recorder, site: Site) -> None:
        node, by = site.node, site.rectifier.input
        fit = self.maps.get(site.name)
        if fit is None:
            recorder.replace(node, by, f"{site.name} becomes the identity")
            return
        why = f"{site.name} becomes an affine map of each channel"
        like = _like(recorder.graph_module)
        module = to_module(fit, like)
        path = f"{site.name.replace('#', '_')}_linear"
        recorder.replace(node, recorder.insert(path, module, by, node, why), why)


def hazard(aliases: Aliases, rectifier: Rectifier) -> Refusal | None:
    """Why the rectifier cannot be deleted without changing what other nodes read, if so."""
    if rectifier.inplace:
        if seen := aliases.others_see(rectifier.node):
            return Refusal(
                f"it works in place, and {label(seen[0])} shares memory with what it overwrites"
            )
        return None
    later = aliases.overwritten(rectifier.node)
    if later is None or aliases.is_private(rectifier.input, rectifier.node):
        return None
    return Refusal(
        f"{label(later)} overwrites its output in place, and would overwrite its input instead"
    )


def _like(graph_module: GraphModule) -> Tensor | None:
    tensors = chain(graph_module.parameters(), graph_module.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)
