"""A third-party package brings one extension of each kind, by public names alone."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest

import fxreduce

PACKAGE = Path(__file__).parent / "package"
ROOT = Path(fxreduce.__file__).parents[1]
BROKEN = {"fxreduce.costs": {"absent": "no_such_module:register"}} | {
    f"fxreduce.{group}": {"raises": "os:fsdecode"}  # which cannot be called without arguments
    for group in ("rectifiers", "operators", "passes", "importances", "budgets")
}


def install(site: Path, name: str, entry_points: Mapping[str, Mapping[str, str]]) -> None:
    """What pip leaves of a distribution, as far as importlib.metadata reads it."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, entries in entry_points.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages that holds the example."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    install(tmp_path / "site", project["name"], project["entry-points"])
    (tmp_path / "site" / "fxreduce_example").symlink_to(PACKAGE / "fxreduce_example")
    return tmp_path / "site"


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (site, ROOT)))
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        cwd=site,
        capture_output=True,
        text=True,
        check=False,
    )


MODEL = """
import torch
from torch import nn
from fxreduce_example.operator import LowRankLinear
from fxreduce_example.rectifier import SquaredReLU, squared_relu

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.first = nn.Conv2d(3, 8, 1), LowRankLinear(8, 8, 2)
        self.act, self.second = SquaredReLU(), LowRankLinear(8, 4, 2)

    def forward(self, x):
        x = squared_relu(self.embed(x)).flatten(2).transpose(1, 2)
        x = self.act(self.first(x)).transpose(1, 2).transpose(1, 2)
        return self.second(x).mean(1)

def make():
    torch.manual_seed(0)
    return Model().eval()
"""
SCRIPT = MODEL + dedent("""
    import json, warnings
    warnings.simplefilter("error")
    import fxreduce

    model, loader = make(), [torch.randn(8, 3, 4, 4) for _ in range(6)]
    analysis = fxreduce.analyze(model, loader)
    given = dict(importance="minority", cost="weights", compensate="channel")
    plan = analysis.plan(budget="output-error", **given)
    plan.save("plan.json")
    first = analysis.plan(budget=1, **given).steps[0]
    reduced = fxreduce.apply(model, loader, budget=1, include=["act"], **given)
    kept = fxreduce.apply(model, loader, budget=1, include=["act"],
                          disable=["drop_double_transpose"], **given)
    entropies = {site.name: site.on_probability for site in analysis.sites}
    print(json.dumps({
        "kinds": {site.name: site.kind for site in analysis.sites},
        "first": [first.site, first.importance],
        "expected": {n: float(torch.minimum(p, 1 - p).mean()) for n, p in entropies.items()},
        "refusals": [each.reason for each in plan.refusals],
        "cost": fxreduce.Plan.load("plan.json").cost.name,
        "operators": [fxreduce.report(each).operators_after for each in (reduced, kept)],
        "transposes": [sum(node.target == "transpose" for node in each.graph.nodes)
                       for each in (reduced, kept)],
    }))
""")


def test_all_six_work_by_their_names(site: Path) -> None:
    ran = python(site, "-c", SCRIPT)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert seen["kinds"] == {"squared_relu": "squared_relu", "act": "squared_relu"}
    # The plan holds some batches out, the analysis none.
    name, importance = seen["first"]
    assert name == min(seen["expected"], key=seen["expected"].__getitem__)
    assert importance == pytest.approx(seen["expected"][name], rel=0.05)
    assert any("relative squared error" in reason for reason in seen["refusals"])
    assert seen["cost"] == "weights"
    # Without the site, and without the transpositions, the two Linears are one; the one that
    # stays between the convolution and them belongs to the model.
    assert seen["operators"] == [2, 3]
    assert seen["transposes"] == [1, 3]


def test_the_command_line_takes_their_names(site: Path) -> None:
    pytest.importorskip("sklearn")
    (site / "model.py").write_text(MODEL)
    (site / "photos" / "a").mkdir(parents=True)
    ran = python(
        site, "-m", "fxreduce", "reduce", "model.py:make", "--data", "digits", "--size", "8",
        "--samples", "48", "--batch-size", "8", "--budget", "output-error", "--importance",
        "minority", "--cost", "weights", "--out", "plan.json", "--quiet", "--json",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert {site["kind"] for site in json.loads(ran.stdout)["report"]["sites"]} == {"squared_relu"}


def test_a_broken_package_is_named_and_skipped(site: Path) -> None:
    install(site, "broken", BROKEN)
    script = MODEL + dedent("""
        import warnings, fxreduce
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            model, loader = make(), [torch.randn(8, 3, 4, 4) for _ in range(6)]
            for _ in range(2):
                fxreduce.apply(model, loader, budget="output-error", cost="weights",
                               importance="minority", compensate="identity")
        print(*(each.message for each in seen), sep="\\n")
    """)
    ran = python(site, "-c", script)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 6
    for group, entries in BROKEN.items():
        (line,) = [line for line in lines if f" of {group} =" in line]
        ((name, value),) = entries.items()
        assert line.startswith(f"broken 1.0 extends fxreduce by {name!r}")
        assert f"{value!r}, which is skipped" in line
    assert any("ModuleNotFoundError: No module named 'no_such_module'" in line for line in lines)


def test_the_example_uses_public_names_alone() -> None:
    files = sorted((PACKAGE / "fxreduce_example").glob("*.py"))
    imports = [
        node
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fxreduce")
    ]
    assert len(imports) == 6
    for each in imports:
        assert each.module == "fxreduce.registry"
        assert {alias.name for alias in each.names} <= set(fxreduce.registry.__all__)
