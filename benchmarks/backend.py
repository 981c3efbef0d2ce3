"""What `backend="fxreduce"` gains over inductor, and what it costs.

    make bench-backend
    python -m benchmarks.backend --cases mobilenet_v2 bert --batches 1 --json figures.json

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
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from timeit import timeit
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._inductor import config

import fxreduce
from benchmarks import charts
from benchmarks.document import Table
from benchmarks.fusion import CASES as DELETED
from benchmarks.machine import processor_seconds
from benchmarks.models import build, settle
from benchmarks.run import Run, parser_of
from fxreduce.graph.compare import difference
from fxreduce.timing import least_latencies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = 224
BARS = (
    "÷ ahead, frozen: at least 0.95, as fast as merging before compiling.",
    "÷ inductor on resnet50 and bert, where little or nothing merges: at least 0.98.",
    "Compiling over inductor's: at most 1.10. A call that folds 100 weights: under 20 µs.",
)
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
                start = processor_seconds()
                compiled[place](x)
                seconds[place].append(processor_seconds() - start)
        apart = difference(_values(model(x)), _values(compiled[1](x))).max_rel
        calls = [partial(run, x) for run in compiled]
        times = [1e3 * each for each in least_latencies(calls, x.device, rounds=runs)]
    return Figures(case, batch, frozen, *times, min(seconds[0]), min(seconds[1]), apart)


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


COLUMNS = (
    ("case", "{}", attrgetter("case")),
    ("batch", "{}", attrgetter("batch")),
    ("frozen", "{}", lambda each: "yes" if each.frozen else "no"),
    ("inductor ms", "{:.2f}", attrgetter("inductor")),
    ("backend ms", "{:.2f}", attrgetter("backend")),
    ("fused ahead ms", "{:.2f}", attrgetter("ahead")),
    ("÷ inductor", "{:.2f}x", lambda each: each.inductor / each.backend),
    ("÷ ahead", "{:.2f}x", lambda each: each.ahead / each.backend),
    ("compiling cpu s, inductor", "{:.1f}", attrgetter("compile_inductor")),
    ("backend", "{:.1f}", attrgetter("compile_backend")),
    ("ratio", "{:.2f}", lambda each: each.compile_backend / each.compile_inductor),
    ("deviation", "{:.0e}", attrgetter("deviation")),
)


def tables(figures: Sequence[Figures], call: float) -> list[Table]:
    """The cases, and what a call costs beside the merged graph."""
    beside = [("a call that folds 100 weights, µs", "{:.1f}", float)]
    return [
        Table.of("Compiled models; ratios above one: the backend is faster", figures, COLUMNS),
        Table.of("Beside the merged graph", [call], beside),
    ]


def chart(figures: Sequence[Figures]) -> Figure:
    series = {
        "÷ inductor": [each.inductor / each.backend for each in figures],
        "÷ fused ahead": [each.ahead / each.backend for each in figures],
    }
    labels = [f"{each.case}, batch {each.batch}{', frozen' * each.frozen}" for each in figures]
    return charts.ratios(labels, series, "times as fast")


def measured(arguments: argparse.Namespace) -> Iterator[Figures]:
    for case in arguments.cases:
        for batch in arguments.batches:
            for frozen in (True, False):
                found = measure(case, batch, frozen, arguments.runs, arguments.compilations)
                cells = (f"{title} {form.format(of(found))}" for title, form, of in COLUMNS)
                print(*cells, sep=", ", file=sys.stderr)  # for whoever stops it early
                yield found
                gc.collect()  # graphs hold themselves, and their weights


def main(given: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES, help="(all)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="(1 8)")
    parser.add_argument("--runs", type=int, default=15, help="runs to take the least of (15)")
    parser.add_argument("--compilations", type=int, default=2, help="of each, likewise (2)")
    arguments = parser.parse_args(given)
    run = Run.begin("backend", __doc__, arguments)
    figures, call = list(measured(arguments)), overhead()
    run.end(tables(figures, call), BARS, (lambda: chart(figures)) if figures else None)


if __name__ == "__main__":
    main()
