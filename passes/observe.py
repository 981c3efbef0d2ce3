"""Insert an observer at every rectifier, fed by its pre-activation.

    Before: y = bn(x); z = gelu(y)               After: y = bn(x); observer(y); z = gelu(y)
    Before: y = x + s; z = relu_(y)              After: y = x + s; z = observer(y)
    Before: y = bn(x); z = relu_(y)              After: z = observer(x)

Exact: the values of the graph stay what they are, bit for bit. The observer stands before the
rectifier, as an in-place rectifier overwrites what is to be observed; where it can rectify block by
block itself it takes the rectifier's place, and that of a batch-norm in eval mode which only the
rectifier reads: all share one way through memory. Restrictions: calibration takes the observed
graph, never the result. Cost: one read of each pre-activation, or none where a batch-norm is taken
along, as its result is not written to memory and read again. Source: EASIER (ECML PKDD 2024), the
state of a neuron is the sign of its pre-activation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from torch.fx import GraphModule, Node

from fxreduce.calibration.batch_norm import BatchNorm
from fxreduce.calibration.fill import filling
from fxreduce.calibration.observer import Observer
from fxreduce.calibration.sums import Fill
from fxreduce.errors import CalibrationError
from fxreduce.graph.batch_norms import BatchNormCall, read_batch_norm
from fxreduce.graph.layout import channel_axis
from fxreduce.graph.nodes import argument, has_hooks, module_of, shape_of
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.rectifiers import Rectifier, Site, find_sites, parameters_of
from fxreduce.passes.base import PassResult

OBSERVERS = "fxreduce_observers"


@dataclass(frozen=True)
class Observe:
    """Insert observers at rectifiers.

    Attributes:
        moments: whether the moments of pre-activation and output are taken too.
        sites: the sites to observe; None observes all.
        axes: channel axes, counted from the right, of sites where the layout's own is not wanted.
    """

    moments: bool = True
    sites: tuple[str, ...] | None = None
    axes: Mapping[str, int] = field(default_factory=dict)
    name: ClassVar[str] = "observe"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        # All observers are made before one takes a call's place, which the others' layouts follow
        # from.
        made = [
            (site, _norm_before(recorder.graph_module, site))
            for site in find_sites(recorder.graph_module)
            if self.sites is None or site.name in self.sites
        ]
        watching = [self._observer(recorder, site, norm) for site, norm in made]
        for number, ((site, norm), observer) in enumerate(zip(made, watching, strict=True)):
            path = f"{OBSERVERS}.{number}"
            why = f"observes the pre-activation of {site.name}"
            given = site.rectifier.input
            source = given if norm is None else argument(given, 0, "input")
            seen = recorder.insert(path, observer, source, site.node, why)
            if observer.replaces:
                recorder.replace(site.node, seen, "the observer rectifies what it has in cache")
            if norm is not None:
                recorder.erase(given, "the observer normalises what it has in cache")
        return PassResult.of(recorder)

    def _observer(self, recorder: Recorder, site: Site, norm: BatchNormCall | None) -> Observer:
        graph_module, rectifier = recorder.graph_module, site.rectifier
        in_place = rectifier.inplace
        if norm is not None:  # whose value is nobody else's
            in_place = recorder.aliases.is_private(norm.input, rectifier.input)
        return Observer(
            site.name,
            self.axes.get(site.name, site_axis(graph_module, site)),
            rectify=evaluator(graph_module, rectifier),
            moments=self.moments,
            fill=_fill(graph_module, site),
            in_place=in_place,
            norm=None if norm is None else _batch_norm(norm),
        )


def _fill(graph_module: GraphModule, site: Site) -> Fill | None:
    """The rectifier for blocks, where it may be applied without its call."""
    kind = site.rectifier.kind
    if _is_hooked(graph_module, site.node):
        return None
    return filling(kind, parameters_of(graph_module, site.node, kind))


def _norm_before(graph_module: GraphModule, site: Site) -> BatchNormCall | None:
    """The batch-norm that only the site reads, where the observer can take its place too."""
    given = site.rectifier.input
    if set(given.users) != {site.node} or _fill(graph_module, site) is None:
        return None
    read = read_batch_norm(graph_module, given)
    call = read if isinstance(read, BatchNormCall) else None
    return None if _is_hooked(graph_module, given) else call


def _is_hooked(graph_module: GraphModule, node: Node) -> bool:
    """Whether the node calls a module with hooks, which run only with the call itself."""
    module = module_of(graph_module, node)
    return module is not None and has_hooks(module)


def _batch_norm(call: BatchNormCall) -> BatchNorm:
    return BatchNorm(call.mean, call.variance, call.weight, call.bias, call.eps)


def observers(graph_module: GraphModule) -> tuple[Observer, ...]:
    """The observers of a graph module, in order of execution."""
    return tuple(module for module in graph_module.modules() if isinstance(module, Observer))


def site_axis(graph_module: GraphModule, site: Site) -> int:
    """The channel axis of the site's pre-activation, counted from the right.

    Raises:
        CalibrationError: the graph does not know the shape of the pre-activation.
    """
    shape = shape_of(site.rectifier.input)
    if shape is None:
        raise CalibrationError(
            f"the shape of the pre-activation of {site.name} is not known; capture the model with "
            "example inputs before observing it"
        )
    if not site.rectifier.elementwise and len(shape) > 1:
        return 1 - len(shape)  # where torch's PReLU has its channels, whatever stands around it
    return channel_axis(graph_module, site.rectifier.input, len(shape))


def evaluator(graph_module: GraphModule, rectifier: Rectifier) -> Callable[[Tensor], Tensor]:
    """The rectifier as a function of its pre-activation that overwrites nothing."""
    node = rectifier.node
    module = module_of(graph_module, node)
    if module is not None:
        pure = copy(module)
        if rectifier.inplace:
            pure.inplace = False  # type: ignore[assignment]
        return pure
    call = _caller(graph_module, node)
    if not rectifier.inplace:
        return call
    return lambda z: call(z.clone())


def _caller(graph_module: GraphModule, node: Node) -> Callable[[Tensor], Tensor]:
    """The node's call with its first argument left open."""

    def value(argument: object) -> object:
        if not isinstance(argument, Node):
            return argument
        found: object = graph_module
        for part in str(argument.target).split("."):
            found = getattr(found, part)
        return found

    rest = [value(given) for given in node.args[1:]]
    kwargs = {name: value(given) for name, given in node.kwargs.items() if name != "input"}
    target = node.target
    if node.op == "call_method":
        return lambda z: getattr(z, str(target))(*rest, **kwargs)
    assert callable(target)  # as the target of a call_function node
    return lambda z: target(z, *rest, **kwargs)
