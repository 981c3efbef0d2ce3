"""What a reduced model was made from: kept with it, so that it can be saved and loaded again."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.fx import GraphModule

from fxreduce.planning.example import InputSpec
from fxreduce.planning.fingerprint import Fingerprint, fingerprint

ORIGIN = "fxreduce.origin"  # GraphModule.meta key


@dataclass(frozen=True)
class Origin:
    """The original model's fingerprint, and the shapes and dtypes of a batch where one served."""

    architecture: Fingerprint
    inputs: InputSpec | None

    @classmethod
    def of(cls, graph_module: GraphModule, inputs: InputSpec | None = None) -> Origin:
        """The origin that a graph module has already, or else the graph module itself."""
        kept = graph_module.meta.get(ORIGIN)
        if not isinstance(kept, Origin):
            return cls(fingerprint(graph_module), inputs)
        return replace(kept, inputs=inputs or kept.inputs)
