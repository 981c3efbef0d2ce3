"""What `backend="fxreduce"` gains over inductor, and what it costs.

    make bench-backend
    python benchmarks/backend.py --cases mobilenet_v2 bert --batches 1 --json figures.json

Each model is compiled in three ways, all with constants frozen: by inductor; by inductor behind
`fxreduce.backend(freeze=True)`; and by inductor after `fxreduce.fuse`. The models of the first
three cases are without rectifiers, so that there is something to merge; resnet50 and the BERT are
as they are, and shall be no slower. Then the same without freezing, where weights may change.
Compilation is timed with inductor's caches off, in turns, as processor time with that of the C++
compiler. At the end stands what a call costs beside the
merged graph that it runs: folded weights are looked up, and the weights they are from are compared
with what they were.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from timeit import timeit
from typing import Any

import torch
from fusion import CASES as DELETED
from models import build, settle
from torch import Tensor, nn
from torch._inductor import config

import fxreduce
from fxreduce.graph.compare import difference
from fxreduce.report.table import table
from fxreduce.timing import least_latencies

SIZE = 224
CASES = ("mobilenet_v2", "vit_small", "swin_t", "resnet50", "bert")
UNTOUCHED = ("resnet50", "bert")


@dataclass(frozen=True)
class Figures:
    """What was measured of one case at one batch size, frozen or not.

    Attributes:
        inductor, backend, ahead: least milliseconds of a call.
        compile_inductor, compile_backend: least seconds of processor time of the first call.
        deviation: of the backend's output from the uncompiled model's, relative to the largest.
    """

    case: str
    batch: int
    frozen: bool
    inductor: float
    backend: float
    ahead: float
    compile_inductor: float
    compile_backend: float
    deviation: float


def make(case: str) -> nn.Module:
    """The model, without its rectifiers unless it is an untouched one."""
    if case == "bert":
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        sizes = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 1024}
        return BertModel(BertConfig(num_attention_heads=4, **sizes)).eval()
    if case in UNTOUCHED:
        return build(case, SIZE)
    model = build(DELETED[case].model, SIZE)
    return settle(fxreduce.linearize(model, DELETED[case].sites(model)), SIZE)


def example(case: str, batch: int) -> Tensor:
    if case == "bert":
        return torch.randint(1000, (batch, 128))
    return torch.randn(batch, 3, SIZE, SIZE)


@torch.no_grad()
def measure(case: str, batch: int, frozen: bool, runs: int, compilations: int) -> Figures:
    """The figures of a case. BERT is no graph that can be traced: nothing is fused ahead of it."""
    model, x = make(case), example(case, batch)
    ahead = model if case == "bert" else fxreduce.fuse(model, example_inputs=x)
    ways: list[tuple[nn.Module, Any]] = [
        (model, "inductor"),
        (model, fxreduce.backend(freeze=frozen)),
        (ahead, "inductor"),
    ]
    seconds: list[list[float]] = [[] for _ in ways]
    # With one thread inductor compiles here and in processes that it waits for.
    with config.patch(freezing=frozen, force_disable_caches=True, compile_threads=1):
        torch.compile(nn.Linear(2, 2), fullgraph=True)(torch.rand(1, 2))  # loads inductor
        for turn in range(compilations):
            torch.compiler.reset()
            compiled = [
                torch.compile(each, backend=backend, dynamic=False) for each, backend in ways
            ]
            for place in range(len(ways))[:: -1 if turn % 2 else 1]:
                start = _processor_time()
                compiled[place](x)
                seconds[place].append(_processor_time() - start)
        apart = difference(_values(model(x)), _values(compiled[1](x))).max_rel
        calls = [partial(run, x) for run in compiled]
        times = [1e3 * each for each in least_latencies(calls, x.device, rounds=runs)]
    return Figures(case, batch, frozen, *times, min(seconds[0]), min(seconds[1]), apart)


def _processor_time() -> float:
    """Seconds that this process and those that it has waited for have used."""
    return sum(os.times()[:4])


def _values(output: Any) -> Any:
    return output if isinstance(output, Tensor) else tuple(output.values())


@torch.no_grad()
def overhead(weights: int = 100, repeats: int = 60) -> float:
    """Microseconds of a call of ours beyond a function that takes as many arguments.

    The model folds as many weights, five for each convolution with its batch-norm.
    """
    layers: list[nn.Module] = []
    for _ in range(weights // 5):
        layers += [nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    model, made = nn.Sequential(*layers).eval(), list[tuple[Callable[..., Any], list[Any]]]()

    def nothing(*given: Any) -> tuple[Any, ...]:
        return given[:1]

    def keep(graph_module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        run = fxreduce.backend(lambda *_: nothing)(graph_module, inputs)
        made.append((run, list(inputs)))
        return run

    torch.compile(model, backend=keep)(torch.rand(1, 8, 4, 4))
    run, given = made[0]
    pairs = [(_microseconds(run, given), _microseconds(nothing, given)) for _ in range(repeats)]
    mine, bare = map(min, zip(*pairs, strict=True))  # whatever else runs only adds
    return mine - bare


def _microseconds(run: Callable[..., Any], given: Sequence[Any], number: int = 500) -> float:
    """Of one call, in processor time of this thread, which others do not add to."""
    return timeit(lambda: run(*given), number=number, timer=time.thread_time) / number * 1e6


def rows(figures: Sequence[Figures]) -> str:
    """The figures, a line each; ratios above one say how much faster the backend is."""
    head = ["case", "batch", "frozen", "inductor ms", "backend", "fused ahead"]
    head += ["÷ inductor", "÷ ahead", "compiling cpu s", "backend", "ratio", "deviation"]
    return table(head, [_cells(each) for each in figures])


def _cells(each: Figures) -> list[str]:
    return [
        each.case,
        str(each.batch),
        "yes" if each.frozen else "no",
        *(f"{ms:.2f}" for ms in (each.inductor, each.backend, each.ahead)),
        f"{each.inductor / each.backend:.2f}x",
        f"{each.ahead / each.backend:.2f}x",
        f"{each.compile_inductor:.1f}",
        f"{each.compile_backend:.1f}",
        f"{each.compile_backend / each.compile_inductor:.2f}",
        f"{each.deviation:.0e}",
    ]


def measured(arguments: argparse.Namespace) -> Iterator[Figures]:
    for case in arguments.cases:
        for batch in arguments.batches:
            for frozen in (True, False):
                yield measure(case, batch, frozen, arguments.runs, arguments.compilations)
                print(f"{case}, batch {batch}, frozen {frozen}: done", file=sys.stderr)
                gc.collect()  # graphs hold themselves, and their weights


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES, help="(all)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="(1 8)")
    parser.add_argument("--runs", type=int, default=15, help="runs to take the least of (15)")
    parser.add_argument("--compilations", type=int, default=2, help="of each, likewise (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args(given)
    figures, call = list(measured(arguments)), overhead()
    print(
        f"{SIZE} pixels, {arguments.runs} runs, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    if figures:
        print(rows(figures))
    print(f"a call that folds 100 weights: {call:.1f} µs of processor time beside the merged graph")
    if arguments.json:
        document = {"size": SIZE, "runs": arguments.runs, "torch": torch.__version__}
        document |= {"threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
        document |= {"overhead_us": call, "cases": [asdict(each) for each in figures]}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
