"""The backend that compiles what fxreduce has merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch.fx import GraphModule

from fxreduce.errors import UnsupportedError, first_line

Run = Callable[..., Any]


@dataclass(frozen=True)
class Inner:
    """A backend of torch.compile with its options.

    Attributes:
        backend: a registered name, or a callable `(graph_module, example_inputs) -> callable`.
        mode: one of inductor's modes, or whatever else the backend takes.
        options: of the backend, as pairs.
    """

    backend: str | Run
    mode: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(
        cls, backend: str | Run, mode: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Inner:
        """The inner backend, checked.

        Raises:
            UnsupportedError: the backend is not known, or inductor does not know a mode or option.
        """
        if isinstance(backend, str):
            if backend not in torch.compiler.list_backends(()):
                names = ", ".join(torch.compiler.list_backends(()))
                raise UnsupportedError(
                    f"inner is a backend of torch.compile, one of {names}, or a callable; seen: "
                    f"{backend!r}"
                )
        elif not callable(backend):
            raise UnsupportedError(
                "inner is the name of a backend of torch.compile or a callable (graph_module, "
                f"example_inputs) -> callable; seen: {backend!r}"
            )
        inner = cls(backend, mode, tuple(sorted((options or {}).items())))
        if backend == "inductor" and (mode or options):
            inner._inductor()  # names what it does not know
        return inner

    def for_constants(self) -> Inner:
        """The same where weights are constants: inductor may prepare them for its kernels, too."""
        if self.backend != "inductor":
            return self
        return replace(self, options=tuple(({"freezing": True} | dict(self.options)).items()))

    def compile(self, graph_module: GraphModule, inputs: Sequence[Any]) -> Run:
        """What the backend makes of a graph: a callable that takes its inputs one by one."""
        if self.backend == "inductor":
            return cast(Run, self._inductor()(graph_module, inputs))
        given = {"mode": self.mode, "options": dict(self.options)}
        compiler: Any = torch._dynamo.lookup_backend(self.backend)
        return cast(Run, compiler(graph_module, inputs, **{k: v for k, v in given.items() if v}))

    def _inductor(self) -> Any:
        try:
            return torch._TorchCompileInductorWrapper(self.mode, dict(self.options), dynamic=None)
        except RuntimeError as error:
            raise UnsupportedError(f"inductor refuses: {first_line(error)}") from error
