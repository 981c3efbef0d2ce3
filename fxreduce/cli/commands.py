"""What `fxreduce demo`, `fxreduce analyze` and `fxreduce reduce` do with their arguments."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

import fxreduce
from fxreduce.calibration.ranks import is_first
from fxreduce.cli.demo import Settings, run
from fxreduce.cli.demo_table import as_json, as_text
from fxreduce.cli.models import LoadedModel, data_format, load_model
from fxreduce.cli.report_file import check_report, save_report
from fxreduce.cli.saving import check_destination, save
from fxreduce.cli.weights import load_weights
from fxreduce.data.dataset import InputBatches, first_samples
from fxreduce.data.formats import TextFormat
from fxreduce.data.names import Data, load_data
from fxreduce.errors import PlanError, UnsupportedError
from fxreduce.planning.budgets import Budget, as_budget
from fxreduce.report.report import Latency
from fxreduce.timing import median_latencies
from fxreduce.training.distributed import process_group
from fxreduce.training.evaluate import agreement, call, to_device

SCHEMA = 1  # of what --json prints; the documentation's page "JSON output" describes it
_ROUNDS = 20


@dataclass(frozen=True)
class Inputs:
    """The model and the data of a command."""

    model: LoadedModel
    data: Data

    @classmethod
    def load(cls, arguments: argparse.Namespace, device: torch.device) -> Inputs:
        """Load what the arguments name, the model onto the device."""
        model = load_model(arguments.model, size=arguments.size, seed=arguments.seed)
        if arguments.weights is not None:
            load_weights(model.module, arguments.weights)
        elif is_first() and not arguments.quiet:
            print(
                f"note: {model.name} has random weights, so that its figures say nothing about a "
                "trained one; --weights FILE loads trained weights",
                file=sys.stderr,
            )
        form = data_format(model, arguments.tokenizer)
        if isinstance(form, TextFormat):  # which a model of a file does not say
            model = replace(model, images=None)
        data = load_data(
            arguments.data,
            form,
            samples=arguments.samples,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
        )
        model.module.to(device)
        return cls(model, data)

    @property
    def kind(self) -> str:
        """What a sample is."""
        return "text" if self.model.images is None else "image"

    def analyze(self, arguments: argparse.Namespace, entropy: str = "paper") -> fxreduce.Analysis:
        """Measure the model's rectifiers on the calibration data."""
        return fxreduce.analyze(
            self.model.module,
            InputBatches(self.data.calibration),
            entropy=entropy,
            progress=False if arguments.quiet else None,
        )

    def describe(self) -> dict[str, Any]:
        """What the figures were made from, for the JSON output."""
        return {
            "schema": SCHEMA,
            "model": self.model.name,
            "data": self.data.name,
            "image_size": None if self.model.images is None else list(self.model.images.size),
            "calibration_images": len(self.data.calibration.indices),
        }


def demo(arguments: argparse.Namespace) -> None:
    """Run the demonstration and print its table."""
    settings = Settings(seed=arguments.seed, fraction=arguments.fraction, quiet=arguments.quiet)
    rows = run(settings)
    print(json.dumps(as_json(rows, settings)) if arguments.json else as_text(rows, settings))


def analyze(arguments: argparse.Namespace) -> None:
    """Print the entropy of every rectifier."""
    with process_group(as_device(arguments.device)) as device:
        inputs = Inputs.load(arguments, device)
        analysis = inputs.analyze(arguments, arguments.entropy)
        if is_first():
            _tell(inputs, analysis, arguments)


def _tell(inputs: Inputs, analysis: fxreduce.Analysis, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(inputs.describe() | {"analysis": json.loads(analysis.to_json())}))
        return
    print(analysis.table())
    samples = len(inputs.data.calibration.indices)
    images = inputs.model.images
    pixels = "" if images is None else f", {'x'.join(map(str, images.size))} pixels"
    print(
        f"\n{len(analysis.sites)} rectifiers, measured on {samples} {inputs.kind}s of "
        f"{inputs.data.name}{pixels}"
    )


def reduce(arguments: argparse.Namespace) -> None:
    """Reduce a model, write the result, and print the report with what it costs and gains."""
    # What can be refused is refused before the long work begins.
    check_destination(arguments.out)
    if arguments.report is not None:
        check_report(arguments.report)
    budget = parse_budget(arguments.budget)
    with process_group(as_device(arguments.device)) as device:
        inputs = Inputs.load(arguments, device)
        plan = _plan(inputs, arguments, budget)
        if is_first():  # all have the same plan, one writes
            _finish(plan, inputs, arguments, device)


def _finish(
    plan: fxreduce.Plan, inputs: Inputs, arguments: argparse.Namespace, device: torch.device
) -> None:
    """Apply the plan, write what comes of it, and print the report."""
    original = inputs.model.module
    reduced = plan.apply(original)
    agreeing = agreement(original, reduced, inputs.data.held_out, device)
    sample = to_device(first_samples(next(iter(inputs.data.held_out))[0], 1), device)
    calls = [partial(call, module, sample) for module in (original, reduced)]
    before, after = median_latencies(calls, device, rounds=_ROUNDS)
    written = [save(arguments.out, plan, reduced, sample)]
    report = replace(
        fxreduce.report(reduced),
        latency=Latency(before, after, f"one {inputs.kind} on {device}"),
        agreement=agreeing,
    )
    if arguments.report is not None:
        written.append(save_report(arguments.report, report))
    if arguments.json:
        figures = {
            "report": json.loads(report.to_json()),
            "agreement": agreeing,
            "seconds_before": before,
            "seconds_after": after,
            "out": str(arguments.out),
        }
        print(json.dumps(inputs.describe() | figures))
        return
    print(report, end="\n\n")
    if agreeing is not None:
        print(
            f"same prediction as the original on {agreeing:.1%} of "
            f"{len(inputs.data.held_out.indices)} held-out {inputs.kind}s of {inputs.data.name}"
        )
    print(
        f"{before * 1e3:.2f} -> {after * 1e3:.2f} ms for one {inputs.kind} on {device}, "
        f"{before / after:.2f} times as fast (median of {_ROUNDS} forwards in turns, eager)"
    )
    print("\n".join(written))


def _plan(inputs: Inputs, arguments: argparse.Namespace, budget: Budget) -> fxreduce.Plan:
    """The plan; after Ctrl-C the best so far, if there is one."""
    analysis = inputs.analyze(arguments)
    try:
        return analysis.plan(
            budget=budget,
            importance=arguments.importance,
            compensate=arguments.compensate,
            cost=arguments.cost,
            include=arguments.include,
            exclude=arguments.exclude,
            candidates=arguments.candidates,
            exact=arguments.exact,
        )
    except fxreduce.PlanInterrupted as stopped:
        if is_first():
            print("interrupted: finishing with the removals so far", file=sys.stderr)
        return stopped.plan


def parse_budget(text: str) -> Budget:
    """The budget that `text` stands for: a count, a fraction, `entropy<BITS`, `1.5x` or a name.

    Raises:
        PlanError: It is none of these.
    """
    kind, sign, bits = text.partition("<")
    try:
        if sign and kind.strip() == "entropy":
            return fxreduce.EntropyBelow(float(bits))
        if text.endswith("x"):
            return fxreduce.Speedup(float(text[:-1]))
        return as_budget(float(text) if any(mark in text for mark in ".e") else int(text))
    except ValueError:
        pass
    try:
        return as_budget(text)
    except PlanError:
        raise PlanError(
            "--budget is a number of rectifiers (8), a fraction of them (0.5), 'entropy<BITS' "
            f"(entropy<0.3), a gain by the cost model (1.5x) or auto; got {text!r}"
        ) from None


def as_device(name: str) -> torch.device:
    """The device called `name`.

    Raises:
        UnsupportedError: It cannot be used here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch has no CUDA in it
        reason = str(error).partition("\n")[0]
        raise UnsupportedError(f"--device {name} cannot be used here: {reason}") from error
