"""Every block of Python in the README and the documentation runs, in order, page by page."""

from __future__ import annotations

import re
import webbrowser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxreduce.recipes.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text())]
NEEDS = {
    "README.md": "safetensors",
    "schedules.md": "safetensors",
    "fine-tune.md": "safetensors",
    "timm.md": "timm",
    "getting-started.md": "timm",
    "transformers.md": "transformers",
    "deploy.md": "onnxscript",
}


def readme_names() -> dict[str, Any]:
    """What the README takes for granted: a model, a loader and inputs of the reader's own."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.conv1, model.bn1, model.relu = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
    model.layer1 = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    model.layer4 = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    model.flatten, model.head = nn.Flatten(), nn.Linear(8, 4)
    loader = [torch.randn(8, 3, 8, 8) for _ in range(6)]
    return {"torch": torch, "model": model.eval(), "calib_loader": loader, "inputs": loader[0]}


@pytest.mark.filterwarnings("ignore")  # of the libraries that a page uses
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_its_code_runs(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name])
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.chdir(tmp_path)
    names = readme_names() if page.name == "README.md" else {}
    if page.name == "extending.md":
        monkeypatch.syspath_prepend(str(ROOT / "tests" / "extensions" / "package"))
        keep_registries(monkeypatch)
    text = page.read_text()
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        code = "\n" * line + block[1]  # so that a traceback tells the line of the page
        exec(compile(code, str(page), "exec"), names)
    if page.name == "getting-started.md":
        assert "times as fast" in capsys.readouterr().out
        assert [address.rpartition("/")[2] for address in opened] == ["report.html"]


def keep_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget afterwards what a page registers."""
    from fxreduce.graph import affine, rectifiers
    from fxreduce.operators import cost
    from fxreduce.passes import pipeline
    from fxreduce.planning import budgets, importance

    for module in (cost, budgets, importance):
        monkeypatch.setattr(module, "_NAMED", dict(module._NAMED))
    monkeypatch.setattr(affine, "_MODULES", dict(affine._MODULES))
    monkeypatch.setattr(rectifiers, "_REGISTRY", rectifiers._Registry(
        dict(rectifiers._REGISTRY.modules), dict(rectifiers._REGISTRY.operations),
        dict(rectifiers._REGISTRY.functions),
    ))  # fmt: skip
    monkeypatch.setattr(pipeline, "_REGISTERED", list(pipeline._REGISTERED))


def test_there_is_code_to_run() -> None:
    assert len(WITH_CODE) >= 10
    assert sum(len(BLOCK.findall(page.read_text())) for page in WITH_CODE) >= 25


def test_the_recipe_of_the_guide_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "guides" / "schedules.md").read_text()
    (content,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.toml").write_text(content)
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    assert recipe.training.epochs == 40
    assert recipe.methods["easier"]["drop"] == 0.02
