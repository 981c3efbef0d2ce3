"""Watching the sites on the forwards of training, in train mode, as EASIER's code does."""

from __future__ import annotations

from torch import Tensor
from torch.fx import GraphModule

from fxreduce.calibration.observer import Observer
from fxreduce.calibration.statistics import ChannelStatistics
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.rectifiers import find_sites
from fxreduce.passes.observe import site_axis

_WATCHERS = "fxreduce_watchers"


class TrainingObserver(Observer):
    """Observes a pre-activation while the network is in train mode; returns it as it is."""

    def __init__(self, site: str, channel_axis: int) -> None:
        super().__init__(site, channel_axis, rectify=None, moments=False)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) if self.training else z

    def begin_epoch(self) -> None:
        """Forget the epochs before; see `fxreduce.schedules.begin_epoch`."""
        self.reset()


def watched(graph_module: GraphModule) -> GraphModule:
    """The graph with an observer before each site; it shares its weights with the given one."""
    recorder = Recorder(graph_module, "watch")
    for number, site in enumerate(find_sites(recorder.graph_module)):
        observer = TrainingObserver(site.name, site_axis(recorder.graph_module, site))
        path = f"{_WATCHERS}.{number}"
        why = f"watches {site.name} in training"
        recorder.insert(path, observer, site.rectifier.input, site.node, why)
    return recorder.finish()


def seen(graph_module: GraphModule) -> dict[str, ChannelStatistics]:
    """What the watchers of a graph saw, by site; nothing of those that saw no forward."""
    watchers = [each for each in graph_module.modules() if isinstance(each, TrainingObserver)]
    return {each.site: each.statistics for each in watchers if each.has_seen}
