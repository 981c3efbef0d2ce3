"""What a user may ask for, by name, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

import fxreduce
from fxreduce.operators.cost import FlopsCost
from tests.backend.compiling import Inner, image, network
from tests.checks import assert_close

ROOT = Path(fxreduce.__file__).parent.parent


def test_equal_backends_share_what_is_compiled() -> None:
    inner, model, x = Inner(), network(), image()
    with torch.no_grad():
        for _ in range(20):  # torch.compile stops compiling after eight backends
            torch.compile(model, backend=fxreduce.backend(inner))(x)
    assert inner.compilations == 1


def test_backends_are_equal_where_all_their_options_are() -> None:
    def keep(graph_module: Any, inputs: Any) -> Any:
        return graph_module.forward

    made = [
        fxreduce.backend(),
        fxreduce.backend("eager"),
        fxreduce.backend(keep),
        fxreduce.backend(cost=FlopsCost(per_element=1)),
        fxreduce.backend(disable="fuse_chain"),
        fxreduce.backend(freeze=True),
        fxreduce.backend(by_value=True),
        fxreduce.backend(mode="max-autotune-no-cudagraphs"),
        fxreduce.backend(options={"max_autotune": True}),
    ]
    assert len(set(made)) == len(made)
    assert fxreduce.backend(keep) == made[2]
    assert hash(fxreduce.backend(options={"max_autotune": True})) == hash(made[-1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inner": "no such"}, "inner is a backend of torch.compile, one of .*eager.*'no such'"),
        ({"inner": 3}, "inner is the name of a backend of torch.compile or a callable .* seen: 3"),
        ({"cost": "money"}, "cost is a CostModel or one of 'flops'.*'money'"),
        ({"disable": "fuse_all"}, "disable takes names of passes .*'fuse_all'"),
        ({"freeze": 1}, "freeze is True or False; seen: 1"),
        ({"mode": "fast"}, "inductor refuses: .*fast"),
        ({"options": {"speed": 11}}, "inductor refuses: Unexpected optimization option speed"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(options: dict[str, Any], said: str) -> None:
    with pytest.raises(fxreduce.UnsupportedError, match=f"(?s){said}"):
        fxreduce.backend(**options)


def test_options_of_torch_compile_are_those_of_the_backend() -> None:
    inner, model, x = Inner(), network(), image()
    compiled = torch.compile(
        model,
        backend=fxreduce.backend("inductor"),
        options={"inner": inner, "disable": "fuse_chain"},
    )
    with torch.no_grad():
        assert_close(model(x), compiled(x))
    assert inner.calls()["batch_norm"] == 2


def test_an_unknown_option_of_torch_compile_is_named_with_the_known_ones() -> None:
    compiled = torch.compile(network(), backend=fxreduce.backend("eager"), options={"fold": True})
    with torch.no_grad(), pytest.raises(BackendCompilerFailed) as raised:
        compiled(image())
    assert isinstance(raised.value.inner_exception, fxreduce.UnsupportedError)
    assert "are inner, cost, disable, freeze, by_value, options" in str(raised.value)
    assert "seen: 'fold'" in str(raised.value)


def test_mode_and_options_reach_the_inner_backend() -> None:
    given: list[dict[str, Any]] = []

    def inner(graph_module: Any, inputs: Any, **options: Any) -> Any:
        given.append(options)
        return graph_module.forward

    backend = fxreduce.backend(inner, options={"level": 3})
    with torch.no_grad():
        torch.compile(network(), backend=backend, mode="some mode")(image())
    assert given == [{"mode": "some mode", "options": {"level": 3}}]


def test_inductor_compiles_the_merged_graph() -> None:
    model, x = network(), image()
    compiled = torch.compile(model, backend=fxreduce.backend())
    with torch.no_grad():
        for _ in range(3):
            assert_close(model(x), compiled(x))
            for parameter in model.parameters():
                parameter.mul_(1.1)


def test_inductor_is_told_that_weights_are_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []

    def compile_fx(graph_module: Any, inputs: Any, config_patches: Any, **options: Any) -> Any:
        told.append(config_patches.get("freezing", False))
        return graph_module.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    for options in ({}, {"freeze": True}, {"freeze": True, "options": {"freezing": False}}):
        model, x = network(), image()
        with torch.no_grad():
            assert_close(model(x), torch.compile(model, backend=fxreduce.backend(**options))(x))
    assert told == [False, True, False]


def test_the_installed_name_needs_no_import(tmp_path: Path) -> None:
    """In a process of its own, with the entry points that pyproject.toml declares."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items())
        for group, entries in declared.items()
    ]
    information = tmp_path / "fxreduce_here-0.dist-info"
    information.mkdir()
    (information / "entry_points.txt").write_text("".join(lines))
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fxreduce-here\nVersion: 0\n"
    )
    code = (
        "import torch\n"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 4)).eval()\n"
        "compiled = torch.compile(model, backend='fxreduce', options={'inner': 'eager'})\n"
        "x = torch.rand(3, 4)\n"
        "with torch.no_grad():\n"
        "    assert torch.allclose(model(x), compiled(x), atol=1e-6)\n"
        "import sys\n"
        "print('fxreduce.dynamo.compile' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        cwd=tmp_path,
    )
    assert run.stdout == "True\n", run.stderr
