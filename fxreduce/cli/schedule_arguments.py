"""The arguments of `fxreduce schedule`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fxreduce.cli.experiment import DEFAULT_RECIPE
from fxreduce.cli.saving import FORMATS, MODELS
from fxreduce.cli.schedule import COMMANDS, COMPARE, methods_of, schedule
from fxreduce.cli.values import positive
from fxreduce.data.names import NAMES
from fxreduce.recipes.recipe import METHODS
from fxreduce.training.settings import PRECISIONS


def add_schedule(parser: argparse.ArgumentParser) -> None:
    """The method, what it runs on, how it trains, what it decides by, and where results go."""
    parser.description = (
        "Run a published method: train, evaluate, measure, remove, and again; then merge and time "
        f"the result. {COMPARE} runs several from the same dense weights. Without a recipe "
        f"{DEFAULT_RECIPE} is run, a narrow network on the embedded digits. Under torchrun the "
        "processes share the batches."
    )
    parser.add_argument(
        "method", nargs="?", choices=COMMANDS, metavar="METHOD", help=", ".join(COMMANDS)
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="in the place of the recipe's; see reduce --help"
    )
    _add_experiment(parser)
    _add_training(parser)
    _add_rules(parser)
    _add_results(parser)
    parser.set_defaults(run=schedule)


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("experiment; each overrules the recipe")
    group.add_argument(
        "--recipe",
        metavar="NAME",
        help="a published experiment, a file.toml of your own, or list, which lists them",
    )
    group.add_argument("--root", type=Path, metavar="ROOT", help="folder of the recipe's data set")
    group.add_argument("--data", metavar="DATA", help=f"another data set: {', '.join(NAMES)}")
    group.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="of a model for text")
    group.add_argument("--width", type=float, metavar="W", help="channels of a small model")
    group.add_argument("--size", type=positive, metavar="PIXELS", help="of the images")
    group.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="start from these; a classifier for other classes is left random",
    )
    group.add_argument(
        "--trained",
        action="store_true",
        help="the weights are those of the dense network, which is not trained again",
    )
    group.add_argument(
        "--samples",
        type=positive,
        metavar="N",
        help="measure rectifiers on at most N training samples (default: all)",
    )
    group.add_argument("--device", default="cpu", help="as in cuda (default %(default)s)")


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training; each overrules the recipe")
    group.add_argument(
        "--epochs", type=positive, metavar="N", help="of every training; milestones move along"
    )
    group.add_argument("--rate", type=float, metavar="R", help="learning rate")
    group.add_argument(
        "--retrain-epochs", type=positive, metavar="N", help="of training again in a round"
    )
    group.add_argument(
        "--retrain-rate", type=float, metavar="R", help="of training again; after --refit less do"
    )
    group.add_argument("--batch-size", type=positive, metavar="N", help="of all processes together")
    group.add_argument(
        "--precision", choices=PRECISIONS, help="auto: the best mixed one that the device has"
    )
    group.add_argument("--compile", metavar="BACKEND", help="of torch.compile, as inductor")
    group.add_argument("--workers", type=int, metavar="N", help="processes that load samples")


def _add_rules(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("method")
    group.add_argument("--variant", choices=("paper", "code"), help="where the two differ")
    group.add_argument(
        "--drop",
        type=float,
        metavar="D",
        help="accuracy that may be lost, as a fraction (0.01); inf is no limit",
    )
    group.add_argument("--rounds", type=positive, metavar="N", help="at most so many")
    group.add_argument(
        "--budget", metavar="B", help="ends it before --drop or --rounds do; see reduce --help"
    )
    group.add_argument("--moves", type=positive, metavar="N", help="rectifiers a round")
    group.add_argument(
        "--per-gain",
        action="store_true",
        help="easier: choose by the entropy for what a removal saves once the network is merged",
    )
    group.add_argument(
        "--compensate",
        choices=("identity", "channel", "refit"),
        help="what takes a removed rectifier's place before training again",
    )
    group.add_argument("--refit", action="store_true", help="fit the weights before training again")
    group.add_argument(
        "--rewind", choices=("dense", "initial"), help="train again from these weights"
    )
    group.add_argument(
        "--distil", action="store_true", help="train again on the dense network's outputs, too"
    )
    for option in ("--include", "--exclude"):
        group.add_argument(
            option, action="append", metavar="GLOB", help="rectifiers by name; can be repeated"
        )
    group.add_argument(
        "--methods",
        type=methods_of,
        default=list(METHODS),
        metavar="M,M",
        help=f"that {COMPARE} runs (default: all)",
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FOLDER",
        help="keeps every round; the same command goes on where it was stopped",
    )
    group.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the merged network of the best round; "
        + "; ".join(f"FILE{suffix}: {FORMATS[suffix][0]}" for suffix in MODELS),
    )
    group.add_argument(
        "--plot", type=Path, metavar="FILE", help="chart of all rounds, .png, .svg or .pdf"
    )
