"""A graph of torch.compile, and what may be made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.fx import GraphModule

from fxreduce.dynamo.compiled import Folding, Untouched
from fxreduce.dynamo.folds import Folds, State, Tensors
from fxreduce.dynamo.inner import Inner, Run
from fxreduce.dynamo.late import Late, plain
from fxreduce.dynamo.merge import RUNG, Merging, bound_to, untouched
from fxreduce.dynamo.numbers import NumberInput, find_numbers
from fxreduce.dynamo.optimisers import count_fused_steps
from fxreduce.dynamo.records import Record
from fxreduce.dynamo.reduction import Profile, Removal
from fxreduce.dynamo.template import Template
from fxreduce.dynamo.variants import Call, Take, Variants, take
from fxreduce.dynamo.weights import find_weights
from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.graph.rectifiers import find_sites
from fxreduce.operators.cost import CostModel


@dataclass(frozen=True)
class Source:
    """A graph of torch.compile, kept without what torch.compile noted in it.

    Attributes:
        graph_module: takes all inputs; it is run where nothing is merged.
        template: takes the weights as attributes.
        numbers: the numbers among the inputs that are written into the template.
        backend: by which reports of the graph are found.
        inner: compiles what the graph becomes.
        cost, disable: see `fxreduce.fuse`.
        by_value: whether weights are compared by value at every call.
    """

    graph_module: GraphModule
    template: Template
    numbers: tuple[NumberInput, ...]
    backend: Any
    inner: Inner
    cost: CostModel
    disable: frozenset[str]
    by_value: bool

    @classmethod
    def of(cls, graph_module: GraphModule, inputs: Sequence[Any], **how: Any) -> Source:
        """The source of a graph and its inputs as torch.compile gives them; both stay unchanged."""
        numbers = find_numbers(graph_module, inputs)
        template = Template.of(graph_module, find_weights(graph_module, inputs), numbers)
        return cls(plain(graph_module), template, numbers, **how)

    @cached_property
    def take_weights(self) -> Take:
        """Takes the weights from the inputs."""
        return take([weight.index for weight in self.template.weights])

    @cached_property
    def take_inputs(self) -> Take:
        """Takes what the template takes from the inputs."""
        return take(list(self.template.inputs.values()))

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """The sites and weights by name: the same for one code at other sizes."""
        graph_module = self.template.bind([torch.empty(0)] * len(self.template.weights))
        sites = ((site.name, site.rectifier.kind) for site in find_sites(graph_module))
        return (*sites, *(weight.path for weight in self.template.weights))

    @property
    def has_sites(self) -> bool:
        """Whether there is anything to remove."""
        return len(self.key) > len(self.template.weights)

    def state(self, weights: Tensors) -> State:
        """What the weights are now, to tell later whether they have changed."""
        variances = [place for place, each in enumerate(self.template.weights) if each.variance]
        return State(weights, by_value=self.by_value, variances=variances)

    def merging(self, removal: Removal | None, weights: Tensors) -> Merging:
        """How the graph is merged, without the rectifiers that a removal is for."""
        if removal is not None:
            with bound_to(self.template, weights) as (bound, _):
                removal = removal if removal.fits(bound) else None
        return Merging(self.template, self.cost, self.disable, removal)

    def folding(self, merging: Merging, variants: Variants) -> tuple[Folding, Folds[Call]]:
        """What runs merged graphs on folded weights, and these, to which others may be added."""
        count_fused_steps()
        backend = self.backend

        def fold(weights: Tensors) -> Call | None:
            merged = merging.run(weights)
            return variants.call(merged.lifted, Record(backend, weights, merged.report))

        folds = Folds[Call](fold, self.state)
        unmerged = Late(self.graph_module, self.inner)
        return Folding(self.take_weights, self.numbers, folds, unmerged), folds

    def build(self, removal: Removal | None, weights: Tensors) -> Run:
        """What runs for these weights, compiled when it is first called."""
        merging = self.merging(removal, weights)
        merged = merging.run(weights)
        record = Record(self.backend, weights, merged.report)
        if not merged.modified:
            return Untouched(Late(self.graph_module, self.inner), record)
        variants = Variants(self.inner)
        folding, folds = self.folding(merging, variants)
        if (call := variants.call(merged.lifted, record)) is not None:
            folds.put(weights, call)
        return folding

    @torch.no_grad()
    def decide(
        self, profile: Profile, weights: Tensors, calls: Sequence[tuple[Any, ...]]
    ) -> Removal:
        """What to remove, from what the template was called with.

        Raises:
            FxReduceError: nothing can be decided.
        """
        with (
            torch.inference_mode(False),
            torch.random.fork_rng(devices=[]),
            bound_to(self.template, weights) as (bound, _),
        ):
            return profile(bound, calls)

    def untouched(self, weights: Tensors, *, refused: str = "", decided: str = "") -> Record:
        """The record of a graph that runs as it is: why, and what is going on."""
        refusal = RefusedRewrite("the whole graph", refused, RUNG)
        said = untouched(
            self.template,
            weights,
            refusals=(refusal,) if refused else (),
            decisions=(decided,) if decided else (),
        )
        return Record(self.backend, weights, said)
