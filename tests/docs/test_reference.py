"""The reference is complete: every public name, pass, JSON field and reason has its place."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import fxreduce
from fxreduce.cli.comparison import Comparison
from fxreduce.cli.main import main
from fxreduce.cli.rounds import Point
from fxreduce.cli.saving import FORMATS
from fxreduce.data.names import NAMES
from fxreduce.operators.cost import FlopsCost
from fxreduce.passes.base import pass_names
from fxreduce.passes.crop_kernels import CropKernels
from fxreduce.passes.linearise import Linearise
from fxreduce.passes.observe import Observe
from fxreduce.passes.pipeline import PREPARE, fusion
from fxreduce.passes.refit import Refit
from fxreduce.saving.model_file import ModelFile
from tests.models import Small, images, seeded

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MODULES = (fxreduce, fxreduce.registry, fxreduce.schedules)
# Whose methods need not be documented again by what fulfils them.
PROTOCOLS = (
    fxreduce.Budget,
    fxreduce.registry.Importance,
    fxreduce.registry.CostModel,
    fxreduce.schedules.Rule,
)
GIVEN = (Observe.name, Linearise.name, CropKernels.name, Refit.name)
PASSES = (*pass_names((*PREPARE, *fusion(FlopsCost()))), *GIVEN)


def public() -> Iterator[tuple[str, Any]]:
    """Every public name with what it is, the public methods of classes among them."""
    for module in MODULES:
        for name in module.__all__:
            each = getattr(module, name)
            yield f"{module.__name__}.{name}", each
            if inspect.isclass(each):
                for method, function in vars(each).items():
                    if not method.startswith("_") and inspect.isfunction(function):
                        yield f"{module.__name__}.{name}.{method}", function


PUBLIC = dict(public())


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_is(name: str) -> None:
    last = name.rpartition(".")[2]
    promised = (vars(protocol).get(last) for protocol in PROTOCOLS)
    texts = [inspect.getdoc(each) for each in (PUBLIC[name], *promised) if each is not None]
    documented = next(filter(None, texts), "")
    # A dataclass without a docstring has its signature for one.
    assert not documented.startswith(f"{last}("), name
    assert len(documented.split()) >= 3


@pytest.mark.parametrize(
    "name", [name for name in PUBLIC if name.count(".") == 1 and inspect.isfunction(PUBLIC[name])]
)
def test_every_function_documents_its_arguments_results_and_errors(name: str) -> None:
    documented = inspect.getdoc(PUBLIC[name]) or ""
    raises, function = "raise " in inspect.getsource(PUBLIC[name]), inspect.signature(PUBLIC[name])
    if len(function.parameters) > 1:
        assert "Args:" in documented
        for parameter in function.parameters:
            assert re.search(rf"\b{parameter}\b", documented), parameter
    assert "Raises:" in documented or not raises


def test_the_reference_lists_every_public_name() -> None:
    page = (DOCS / "api.md").read_text()
    listed = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)", page, re.MULTILINE))
    names = {name for module in MODULES for name in module.__all__} - {"registry", "schedules"}
    assert {name for name in names if name not in listed} == set()


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_has_a_page_with_its_parts(name: str) -> None:
    assert f"{{pass}} {name}\n" in (DOCS / "passes" / f"{name}.md").read_text()
    index = (DOCS / "passes" / "index.md").read_text()
    assert f"\n{name}\n" in index
    documented = " ".join(
        (importlib.import_module(f"fxreduce.passes.{name}").__doc__ or "").split()
    )
    for part in ("Before: ", "After:", "Restrictions: ", "Cost: "):
        assert part in documented, part


def fields(page: str, heading: str) -> set[str]:
    """The fields that the table under a heading of the page on JSON names."""
    section = re.split(r"\n##+ ", re.split(rf"\n##+ {heading}\n", page)[1])[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_every_field_of_the_json_is_documented() -> None:
    page = (DOCS / "json.md").read_text()
    reduced = fxreduce.apply(seeded(Small), images(6), budget=1, compensate="channel")
    assert set(json.loads(fxreduce.report(reduced).to_json())) == fields(page, "Report")
    analysis = fxreduce.analyze(seeded(Small), images(2))
    assert set(json.loads(analysis.to_json())) == fields(page, "Analysis")


def test_every_field_of_a_schedule_is_documented() -> None:
    page = (DOCS / "json.md").read_text()
    result = fxreduce.schedules.easier(
        seeded(Small), images(2), train=lambda _: None, evaluate=lambda _: 1.0, rounds=1
    )
    content = json.loads(result.to_json())
    assert set(content) == fields(page, "Schedule")
    assert {*content["rounds"][1]} == fields(page, "Round")
    names = {each.name for each in dataclasses.fields(Comparison)}
    assert names | {"schema", "torch"} == fields(page, "Comparison")
    assert {each.name for each in dataclasses.fields(Point)} == fields(page, "Point")


def test_every_field_of_the_files_is_documented(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    page = (DOCS / "json.md").read_text()
    plan = fxreduce.analyze(seeded(Small), images(6)).plan(budget=1)
    plan.save(tmp_path / "plan.json")
    assert {*json.loads((tmp_path / "plan.json").read_text())} == fields(page, "Plan file")
    held = {each.name for each in dataclasses.fields(ModelFile)} - {"tensors"}
    assert held | {"schema"} == fields(page, "Reduced model file")


SOURCES = (*(ROOT / "fxreduce").rglob("*.py"), *(ROOT / "passes").glob("*.py"))
TREES = [ast.parse(path.read_text()) for path in SOURCES]
# Calls that make a refusal, with the place of the reason; functions that return one.
REFUSING = {"Refusal": 0, "Shortfall": 0, "refuse": 1, "RefusedRewrite": 1, "_refusal": 1}
REASONING = ("_obstacle", "after", "not_cheaper")


def reasons() -> Iterator[str]:
    """The text of every refusal in the code, with {} where a figure or a name goes."""
    constants = {
        ast.unparse(target): literal(node.value)
        for tree in TREES
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
    }
    for node in chain.from_iterable(map(ast.walk, TREES)):
        for each in given_reasons(node):
            text = constants.get(ast.unparse(each)) or literal(each)
            if re.search(r"\w", text):  # and not only what hands on another's
                yield text


def given_reasons(node: ast.AST) -> list[ast.expr]:
    """The expressions that are reasons."""
    if isinstance(node, ast.Call):
        place = REFUSING.get(ast.unparse(node.func).rpartition(".")[2])
        return [] if place is None else node.args[place : place + 1]
    if isinstance(node, ast.Assign):
        return [node.value] if ast.unparse(node.targets[0]) == "reason" else []
    if isinstance(node, ast.FunctionDef) and node.name in REASONING:
        returned = [each.value for each in ast.walk(node) if isinstance(each, ast.Return)]
        return [each for each in returned if each is not None]
    return []


def literal(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_every_reason_for_a_refusal_has_its_remedy() -> None:
    page = (DOCS / "refusals.md").read_text()
    known = re.findall(r"^\| `([^`]+)` \| .+ \|$", page, re.MULTILINE)
    assert len(known) > 50
    found = set(reasons())
    assert len(found) > 80
    assert sorted(each for each in found if not any(words in each for words in known)) == []
    assert [words for words in known if not any(words in each for each in found)] == []


def test_the_page_on_the_command_line_names_commands_data_sets_and_formats(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (DOCS / "command-line.md").read_text()
    with pytest.raises(SystemExit):
        main(["--help"])
    named = re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    assert {"analyze", "schedule"} <= set(named)
    for name in named:
        assert f"| `fxreduce {name}" in page, name
    for name in (*NAMES, *FORMATS):
        assert f"`{name}`" in page, name
