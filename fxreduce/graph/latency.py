"""The cost model that measures: operators are timed where they shall run, each once."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from fxreduce.errors import UnsupportedError
from fxreduce.files import write_atomically
from fxreduce.graph.modules import to_module
from fxreduce.operators.affine import Operator, map_tensors
from fxreduce.operators.cost import Candidate, register_cost
from fxreduce.operators.setting import Setting
from fxreduce.timing import median_latencies

# Weights and inputs of timed operators: of a size that no arithmetic slows down or overflows on.
_VALUE = 0.01


def default_cache() -> Path:
    """Where latencies are kept: in the user's cache folder, or where FXREDUCE_CACHE says."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FXREDUCE_CACHE") or Path(home) / "fxreduce") / "latency.json"


@dataclass(frozen=True)
class LatencyCost:
    """The median microseconds of one call, on the device, dtype, shape and layout of the setting.

    Candidates that are compared are timed in turns, in a shuffled order, so that a noisy moment
    falls on all alike. What was measured is kept in a file, under a key of all that it depends on,
    torch's version, the machine and the number of threads among it.

    Attributes:
        rounds: how often each operator is timed.
        cache: the file; None keeps latencies for this object's life alone.
    """

    name: str = "latency"
    rounds: int = 15
    cache: Path | None = field(default_factory=default_cache)
    _known: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    def cost(self, operator: Operator, setting: Setting) -> float:
        return self.costs([(operator, setting)])[0]

    def costs(self, candidates: Sequence[Candidate]) -> list[float]:
        """The costs of operators that are compared with one another.

        Raises:
            UnsupportedError: the shape of an input is only assumed.
        """
        if any(setting.nominal for _, setting in candidates):
            raise UnsupportedError(
                f"cost={self.name!r} times operators on the model's own shapes, which are not "
                "known; pass example_inputs"
            )
        keys = [_key(*candidate) for candidate in candidates]
        if missing := set(keys).difference(self._known):
            self._known.update(_load(self.cache))
            missing.difference_update(self._known)
            self._measure({k: c for k, c in zip(keys, candidates, strict=True) if k in missing})
        return [self._known[key] for key in keys]

    def learn(self, candidates: Sequence[Candidate], microseconds: Sequence[float]) -> None:
        """Take over what another process has measured."""
        keys = (_key(*candidate) for candidate in candidates)
        self._known.update(zip(keys, microseconds, strict=True))

    def timed(self, take: Callable[[], list[float]]) -> list[float]:
        """Other times that decide, such as those of whole models, from what takes them."""
        return take()

    def _measure(self, candidates: dict[str, Candidate]) -> None:
        """Time what is not known yet, and add it to the file."""
        by_device: dict[str, list[str]] = {}
        for key, (_, setting) in candidates.items():
            by_device.setdefault(setting.device, []).append(key)
        for device, keys in by_device.items():
            calls = [_call(*candidates[key]) for key in keys]
            seconds = median_latencies(calls, torch.device(device), rounds=self.rounds)
            self._known.update(zip(keys, (1e6 * each for each in seconds), strict=True))
        if candidates and self.cache is not None:
            _save(self.cache, {**_load(self.cache), **{k: self._known[k] for k in candidates}})


class _Call:
    """One call of an operator on an input of its setting."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.x = module, x

    def __call__(self) -> object:
        return self.module(self.x)


def _call(operator: Operator, setting: Setting) -> _Call:
    like = torch.empty(0, dtype=setting.dtype, device=setting.device)
    filled = map_tensors(operator, lambda tensor: torch.full(tensor.shape, _VALUE))
    module = to_module(filled, like)
    x = torch.full(setting.shape, _VALUE, dtype=setting.dtype, device=setting.device)
    if setting.channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
        module = module.to(memory_format=torch.channels_last)
    return _Call(module, x)


def _key(operator: Operator, setting: Setting) -> str:
    """All that a latency depends on, as text."""
    fields = vars(operator).items()
    shapes = {name: list(value.shape) for name, value in fields if isinstance(value, Tensor)}
    geometry = {name: value for name, value in fields if not isinstance(value, Tensor)}
    place = [setting.shape, str(setting.dtype), _device(setting.device), setting.channels_last]
    machine = [torch.__version__, torch.get_num_threads()]
    kind = type(operator).__name__
    return json.dumps([kind, shapes, geometry, place, machine], sort_keys=True)


def _device(device: str) -> str:
    """The device by the name of its hardware."""
    if device.startswith("cuda"):
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"{device} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _load(path: Path | None) -> dict[str, float]:
    """The latencies in a file; none where there is no file or a damaged one."""
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {k: float(v) for k, v in entries if isinstance(v, (int, float)) and v > 0}


def _save(path: Path, latencies: dict[str, float]) -> None:
    """Write the file; a latency that cannot be kept is measured again the next time."""
    text = json.dumps(latencies, indent=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda part: _write(part, text))
    except OSError:
        return


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


register_cost("latency", LatencyCost())
