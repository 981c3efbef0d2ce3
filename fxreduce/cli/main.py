"""The entry point: arguments in, an exit code out.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 2 a request
that cannot be served (argparse's too), 130 interrupted, 141 the reader of the output has left.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import fxreduce
from fxreduce.calibration.statistics import VARIANTS
from fxreduce.cli.commands import analyze, demo, reduce
from fxreduce.cli.completion import add_completion
from fxreduce.cli.inspect import inspect
from fxreduce.cli.saving import FORMATS
from fxreduce.cli.schedule_arguments import add_schedule
from fxreduce.cli.values import fraction, positive
from fxreduce.data.names import NAMES
from fxreduce.errors import FxReduceError
from fxreduce.operators.cost import cost_names
from fxreduce.planning.candidates import CANDIDATES
from fxreduce.planning.importance import importance_names

_MODEL = (
    "torchvision:NAME, timm:NAME, small:NAME, transformers:NAME, or path/to/file.py:FACTORY, "
    "called without arguments"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments`, those of the process by default; returns the exit code."""
    try:
        parsed = _parser().parse_args(arguments)
        parsed.run(parsed)
        sys.stdout.flush()
    except FxReduceError as error:
        print(f"fxreduce: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fxreduce: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has left, as `| head` does. Python would complain again on closing the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fxreduce",
        epilog="Exit codes: 0 done, 2 the request cannot be served and one line says why, 130 "
        "interrupted, 141 the reader of the output has left.",
        description="Remove the rectifiers of a trained network that decide least, and merge the "
        "linear operators that then stand next to each other.",
    )
    parser.add_argument("--version", action="version", version=f"fxreduce {fxreduce.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands.add_parser("demo", help="train, reduce and measure two small networks"))
    _add_analyze(commands.add_parser("analyze", help="measure the rectifiers of a model"))
    _add_reduce(commands.add_parser("reduce", help="reduce a model and write it to a file"))
    _add_inspect(commands.add_parser("inspect", help="say what a file is that reduce wrote"))
    schedule = commands.add_parser("schedule", help="run a published method, or compare them")
    add_schedule(schedule)
    _add_common(schedule)
    add_completion(commands.add_parser("completion", help="print a shell's completions"), parser)
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a residual and an inverted-residual network on handwritten digits, reduce each "
        "under several budgets, and print what it gains and what it costs. Takes about a minute."
    )
    parser.add_argument(
        "--fraction",
        type=fraction,
        default=0.5,
        metavar="F",
        help="the fixed budget beside auto: this fraction of the rectifiers (default %(default)s)",
    )
    _add_common(parser)
    parser.set_defaults(run=demo)


def _add_analyze(parser: argparse.ArgumentParser) -> None:
    parser.description = "Measure how much of a decision every rectifier of a model really takes."
    _add_inputs(parser)
    parser.add_argument(
        "--entropy",
        choices=VARIANTS,
        default=VARIANTS[0],
        help="pooled over all images (the papers), or averaged over batches, with zero counted as "
        "on (EASIER's published code) or as off (EGP's); default %(default)s",
    )
    _add_common(parser)
    parser.set_defaults(run=analyze)


def _add_reduce(parser: argparse.ArgumentParser) -> None:
    parser.description = "Reduce a model, say what was done and what it cost, and write the result."
    _add_inputs(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="; ".join(f"FILE{suffix}: {what}" for suffix, (what, _) in FORMATS.items()),
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE.html",
        help="write the report as a page, too, with charts and the graph before and after",
    )
    parser.add_argument(
        "--budget",
        default="auto",
        metavar="B",
        help="how much to remove: a number of rectifiers (8), a fraction of them (0.5), all below "
        "an entropy in bits ('entropy<0.3'), until the cost model sees a gain (1.5x), or auto: as "
        "long as 99%% of the predictions on calibration data stay (default)",
    )
    parser.add_argument(
        "--importance",
        choices=importance_names(),
        default="entropy",
        help="what orders the rectifiers, the least goes first: entropy: of the sign (EASIER); "
        "residual: how much of the output a straight line per channel leaves unexplained; "
        "sensitivity: how far the model's output moves without it; batchnorm: how often the sign "
        "changes by the batch-norm's weights (TLC). Default %(default)s",
    )
    parser.add_argument(
        "--compensate",
        choices=("identity", "channel", "refit"),
        default="refit",
        help="what takes a removed rectifier's place: nothing; per channel its best straight line; "
        "or that, and then the weights are fitted to what the model computed (default %(default)s)",
    )
    parser.add_argument(
        "--cost",
        choices=cost_names(),
        default="flops",
        help="what decides whether a merge pays: flops: multiply-adds and memory; latency: the "
        "time that the operators take on this machine. Default %(default)s",
    )
    parser.add_argument(
        "--candidates",
        choices=CANDIDATES,
        default="auto",
        help="what goes at a time: sites: the least important rectifier; regions: those that save "
        "more together, by the cost model and their importance; auto: regions with the budget "
        "auto, else sites (default %(default)s)",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="make no approximate merges, which refit makes of neighbours where that saves most",
    )
    for option, what in (("--include", "only rectifiers"), ("--exclude", "no rectifier")):
        parser.add_argument(
            option,
            action="append",
            metavar="GLOB",
            help=f"remove {what} whose name matches, as in 'layer4.*'; can be repeated",
        )
    _add_common(parser)
    parser.set_defaults(run=reduce)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Say what is in a plan, a reduced model, a torch.export program or an ONNX model. Nothing "
        "of the file is run."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="as `fxreduce reduce` wrote it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=inspect)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="trained weights, .safetensors or .pth/.pt; without them the weights are random",
    )
    parser.add_argument(
        "--data",
        default="digits",
        metavar="DATA",
        help=f"calibration data: {', '.join(NAMES)} (default %(default)s)",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="transformers tokenizer of a model that takes text",
    )
    parser.add_argument(
        "--size",
        type=positive,
        metavar="PIXELS",
        help="height and width of the images (default: what the model was made for, 32 for a file)",
    )
    parser.add_argument(
        "--samples",
        type=positive,
        default=256,
        metavar="N",
        help="calibrate on at most N images or texts (default %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=32,
        metavar="N",
        help="images or texts (default %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="as in cuda:0 (default %(default)s)")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=int, default=0, help="of weights, splits and training (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quiet", action="store_true", help="no progress and no notes")
