"""The network of a schedule while it shrinks: trainable, unmerged, and restored from a snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxreduce.graph.modules import ChannelAffine, is_channels_last
from fxreduce.graph.rectifiers import find_sites
from fxreduce.operators.affine import Refusal, ScaleShift
from fxreduce.passes.base import run_pipeline
from fxreduce.passes.drop_checks import DropChecks
from fxreduce.passes.linearise import Linearise
from fxreduce.passes.single_assignment import SingleAssignment
from fxreduce.schedules.layers import LayersAsModules
from fxreduce.schedules.pruning import make_permanent, mask_weights, masked_layers, settle

Maps = Mapping[str, ScaleShift | None]

# What is trained keeps its dropouts, which a graph that only runs in eval need not have.
_PREPARE = (DropChecks(), SingleAssignment(), LayersAsModules())


@dataclass(frozen=True)
class Removal:
    """What took a removed site's place.

    Attributes:
        site: its name.
        channels: how many channels the map in its place has; 0 for the identity.
        rank: the number of axes right of the map's channel axis.
        frozen: whether training leaves the map as it is.
    """

    site: str
    channels: int = 0
    rank: int = 0
    frozen: bool = False


@dataclass(frozen=True)
class Snapshot:
    """All that makes a network again from the graph with all its sites.

    Attributes:
        removals: in order of removal.
        masked: paths of the layers whose weights are masked.
        biased: paths of the layers that were given a bias.
        channels_last: names of the tensors that have their channels last in memory.
        tensors: the state dict, copied, on the CPU.
    """

    removals: tuple[Removal, ...] = ()
    masked: tuple[str, ...] = ()
    biased: tuple[str, ...] = ()
    channels_last: tuple[str, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def plain(self) -> dict[str, Tensor]:
        """The tensors by the names that they have without masks, masked weights multiplied out."""
        state = dict(self.tensors)
        for path in self.masked:
            original, mask = state.pop(f"{path}.weight_orig"), state.pop(f"{path}.weight_mask")
            state[f"{path}.weight"] = original * mask
        return state


class Network:
    """A graph module that is trained, and from which sites and weights are taken.

    Attributes:
        base: the graph with all its sites, which is not touched.
        module: what is left of it, with weights of its own.
        removals: what was removed, in order.
        map_paths: the sites in whose place a map stands, by the path of the map.
    """

    def __init__(self, base: GraphModule, module: GraphModule) -> None:
        self.base = base
        self.module = module
        self.removals: list[Removal] = []
        self.map_paths: dict[str, str] = {}
        self._biased: list[str] = []

    @classmethod
    def of(cls, captured: GraphModule) -> Network:
        """The network of a captured graph module, whose nodes know their shapes."""
        base = run_pipeline(captured, _PREPARE).graph_module
        return cls(base, deepcopy(base))

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the sites that are left, in order of execution."""
        return tuple(site.name for site in find_sites(self.module))

    def without(self, maps: Maps) -> GraphModule | Refusal:
        """The graph without further sites; it shares its weights with this one's."""
        given = {name: each for name, each in maps.items() if each is not None}
        result = Linearise(tuple(maps), given).run(self.module)
        if result.refusals:
            first = result.refusals[0]
            return Refusal(f"{first.where} cannot be removed: {first.reason}")
        return result.graph_module

    def remove(self, maps: Maps, *, frozen: bool = False) -> dict[str, str]:
        """Put maps, or the identity for None, in the place of sites.

        Returns:
            Why sites stay that cannot be removed, by name.
        """
        refused = {}
        for name, each in maps.items():
            found = self.without({name: each})
            if isinstance(found, Refusal):
                refused[name] = found.reason
                continue
            known = set(self.module.modules())
            self.module = found
            for path, part in found.named_modules():
                if part not in known and isinstance(part, ChannelAffine):
                    part.requires_grad_(not frozen)
                    self.map_paths[path] = name
            channels, rank = (0, 0) if each is None else (len(each.scale), each.rank)
            self.removals.append(Removal(name, channels, rank, frozen))
        return refused

    def mask(self, masks: Mapping[str, Tensor]) -> int:
        """Mask weights, see `fxreduce.schedules.pruning.mask_weights`; returns how many went."""
        return mask_weights(self.module, masks)

    def add_bias(self, path: str) -> nn.Parameter:
        """The bias of a layer, which gets one of zeros if it has none."""
        layer: Any = self.module.get_submodule(path)
        if layer.bias is None:
            channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            layer.bias = nn.Parameter(layer.weight.detach().new_zeros(channels))
            self._biased.append(path)
        bias: nn.Parameter = layer.bias
        return bias

    def snapshot(self) -> Snapshot:
        """A copy of what the network is now."""
        settle(self.module)
        state = self.module.state_dict()
        return Snapshot(
            tuple(self.removals),
            tuple(masked_layers(self.module)),
            tuple(self._biased),
            tuple(n for n, t in state.items() if t.dim() == 4 and is_channels_last(t)),
            # Cloned, as tied tensors would share memory, which files cannot.
            {
                name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in state.items()
            },
        )

    @classmethod
    def restore(cls, base: GraphModule, snapshot: Snapshot) -> Network:
        """The network that a snapshot was taken of.

        Args:
            base: the graph with all its sites of the same architecture.
        """
        network = cls(base, deepcopy(base))
        for removal in snapshot.removals:
            count = removal.channels
            like = torch.ones(count, dtype=torch.float64)
            each = ScaleShift(like, torch.zeros_like(like), removal.rank) if count else None
            network.remove({removal.site: each}, frozen=removal.frozen)
        for path in snapshot.biased:
            network.add_bias(path)
        state = network.module.state_dict()
        network.mask({path: torch.ones_like(state[f"{path}.weight"]) for path in snapshot.masked})
        network.load(snapshot)
        return network

    def load(self, snapshot: Snapshot) -> None:
        """Set all tensors to those of a snapshot of this very network."""
        state = self.module.state_dict(keep_vars=True)
        with torch.no_grad():
            for name in snapshot.channels_last:
                tensor = state[name]
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        self.module.load_state_dict(snapshot.tensors)
        settle(self.module)

    def rewind(self, snapshot: Snapshot) -> None:
        """Set the tensors that a snapshot of an earlier state has; masks and maps stay."""
        earlier = snapshot.plain()
        masked = {f"{path}.weight": f"{path}.weight_orig" for path in masked_layers(self.module)}
        state = {masked.get(name, name): tensor for name, tensor in earlier.items()}
        self.module.load_state_dict(state, strict=False)
        settle(self.module)


def plain_copy(module: GraphModule) -> GraphModule:
    """A copy in eval mode whose masked weights are plain parameters."""
    settle(module)
    copied = deepcopy(module)
    copied.meta = dict(module.meta)
    make_permanent(copied)
    return copied.eval()
