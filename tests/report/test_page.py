"""The report as a page: its figures are the report's, and it needs nothing but itself."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from fxreduce.report.report import Latency
from tests.models import Residual, Small, images, seeded
from tests.report.chromium import BROWSER, opened

BATCHES = images(6)
VOID = {"meta", "br", "input", "link", "img", "hr"}
OPTIONAL = {"td", "th", "tr", "thead", "tbody", "li"}  # whose end tags HTML leaves out


class Page(HTMLParser):
    """The text of a page by section, its attributes, and whether its tags match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.section, self.texts = "", dict[str, str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag not in VOID | OPTIONAL:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in OPTIONAL:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.texts[self.section] = self.texts.get(self.section, "") + data + " "


@pytest.fixture(scope="module")
def report() -> fxreduce.Report:
    budget = fxreduce.Fidelity(0.99) & fxreduce.Speedup(50)
    reduced = fxreduce.apply(seeded(Residual), BATCHES, budget=budget, importance="residual")
    measured = Latency(0.004, 0.002, "one image on cpu")
    return replace(fxreduce.report(reduced), latency=measured, agreement=0.987)


@pytest.fixture(scope="module")
def page(report: fxreduce.Report) -> Page:
    return Page(report.to_html())


def test_every_section_has_the_figures_of_the_report(report: fxreduce.Report, page: Page) -> None:
    assert page.open == []
    head = page.texts[""]
    assert report.macs_before is not None
    assert report.macs_after is not None
    for figure in (
        report.summary(), f"{report.operators_after:,}", f"from {report.operators_before:,}",
        f"{report.macs_after:,}", f"from {report.macs_before:,}", "2.00×", "4 → 2 ms", "98.7%",
        f"{report.max_error:.1e}",
    ):  # fmt: skip
        assert figure in head, figure
    for row in report.sites:
        assert row.entropy is not None
        told = f"{row.name} {row.kind} {row.entropy:.4f}"
        assert told in re.sub(r"\s+", " ", page.texts["sites"])
    for name in report.removed:
        assert f"✕ removed {report.removed.index(name) + 1}" in page.texts["sites"]
    for line in report.decisions:
        assert line in page.texts["decisions"]
    for refusal in report.refusals:
        assert refusal.reason in page.texts["left-undone"]
        assert refusal.where in page.texts["left-undone"]
    for name, origins in report.merged.items():
        assert name in page.texts["merged-operators"]
        assert all(origin in page.texts["merged-operators"] for origin in origins)


def test_the_frontier_has_a_point_for_every_trial(report: fxreduce.Report, page: Page) -> None:
    assert {trial.measure for trial in report.trials} == {
        "agreement with the original", "times as cheap",
    }  # fmt: skip
    first = report.trials[0]
    assert (first.removed, first.value, first.accepted) == (0, 1.0, True)
    for trial in report.trials:
        fate = "accepted" if trial.accepted else "refused"
        told = f"{trial.removed} removed: {trial.value:.6g}, {fate}"
        assert told in page.texts["frontier-of-the-run"]


def test_the_graphs_hold_every_node(report: fxreduce.Report, page: Page) -> None:
    labels = [value for tag, name, value in page.attributes if name == "data-label"]
    views = (report.graph_before, report.graph_after)
    assert labels == [node.label for view in views for node in view.nodes]
    assert len(report.graph_before.nodes) == 9 + 2  # placeholder and output
    removed = [value for tag, name, value in page.attributes if name == "class"]
    assert sum("rectifier removed" in value for value in removed) == len(report.removed)


def test_what_is_merged_is_told_by_the_names_of_the_model(report: fxreduce.Report) -> None:
    fused = fxreduce.report(fxreduce.fuse(seeded(Residual), example_inputs=BATCHES[0]))
    assert fused.merged["conv1"] == ("conv1", "bn1")
    assert fused.merged["conv2"][:2] == ("conv2", "bn2")
    assert json.loads(fused.to_json())["merged"]["conv1"] == ["conv1", "bn1"]


def test_the_page_needs_nothing_else(report: fxreduce.Report, page: Page) -> None:
    fetching = {"src", "srcset", "data", "action", "poster"}
    assert [each for each in page.attributes if each[1] in fetching] == []
    assert all(v.startswith("#") for _, name, v in page.attributes if name == "href")
    assert "default-src 'none'" in report.to_html()
    assert not re.search(r"url\(|@import|https?://", report.to_html())


def test_a_name_cannot_become_markup() -> None:
    evil = "</script><img src=x onerror=alert(1)>&\"'"
    report = fxreduce.report(fxreduce.fuse(seeded(Small)))
    spoilt = replace(
        report,
        decisions=(evil,),
        sites=tuple(replace(row, name=evil, kind=evil) for row in report.sites),
        removed=(evil,),
        refusals=tuple(replace(each, where=evil, reason=evil) for each in report.refusals),
        graph_before=replace(
            report.graph_before,
            nodes=tuple(replace(n, label=evil, text=evil) for n in report.graph_before.nodes),
        ),
    )
    page = Page(spoilt.to_html())
    assert not any(tag == "img" for tag, _, _ in page.attributes)
    assert evil in page.texts["decisions"]
    assert evil in page.texts["sites"]
    frame = Page(spoilt._repr_html_())
    assert {tag for tag, _, _ in frame.attributes} == {"iframe"}


def test_a_report_is_small_and_survives_pickling(report: fxreduce.Report) -> None:
    assert pickle.loads(pickle.dumps(report)) == report
    assert len(pickle.dumps(report)) < 20_000


def test_a_report_without_calibration_has_no_empty_sections() -> None:
    page = Page(fxreduce.report(fxreduce.fuse(nn.Sequential(nn.Linear(3, 4)).eval())).to_html())
    assert "frontier-of-the-run" not in page.texts
    assert "sites" not in page.texts
    assert "graph" in page.texts


class Deep(nn.Module):
    """Residual blocks, so that many edges pass nodes."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x).relu()
        return x


def test_a_thousand_nodes_fit_on_a_page() -> None:
    report = fxreduce.report(fxreduce.fuse(Deep(340).eval()))
    assert len(report.graph_before.nodes) > 1000
    assert len(report.to_html()) < 1_500_000


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_opens_it_offline_without_complaint(
    report: fxreduce.Report, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(report.to_html(), encoding="utf-8")
    seen, console = opened(path, tmp_path / "profile")
    assert console == ""
    page = Page(seen)
    assert report.summary() in page.texts[""]
    content = re.search(r'id="report">(.*?)</script>', seen, re.DOTALL)
    assert content is not None
    assert json.loads(content[1]) == json.loads(report.to_json())


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_keys_choose_merged_operators_and_zoom(report: fxreduce.Report, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    pressed = (
        "<script>for (const key of ['n', '0']) document.querySelectorAll('.scroll')[1]"
        ".dispatchEvent(new KeyboardEvent('keydown', {key}))</script></body>"
    )
    path.write_text(report.to_html().replace("</body>", pressed), encoding="utf-8")
    seen, console = opened(path, tmp_path / "profile")
    assert console == ""
    page = Page(seen)
    name, origins = next(iter(report.merged.items()))
    chosen = re.findall(r'class="node [^"]*chosen" data-label="([^"]*)"', seen)
    labels = {node.label for node in report.graph_before.nodes}
    assert sorted(chosen) == sorted([name, *labels.intersection(origins)])
    assert f"{name}: {', '.join(origins)}" in page.texts["graph"]
    whole = re.findall(r'<svg width="([\d.]+)"[^>]*viewBox="0 0 ([\d.]+)', seen)
    assert all(float(width) != float(own) for width, own in whole)


@pytest.mark.zoo
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("name", ["resnet50", "swin_b"])
def test_pages_of_large_models_are_small(name: str, tmp_path: Path) -> None:
    models: Callable[..., nn.Module] = getattr(pytest.importorskip("torchvision.models"), name)
    with torch.device("meta"):
        model = models()
    model = model.to_empty(device="cpu").eval()
    nn.init.normal_(next(model.parameters()))
    path = tmp_path / f"{name}.html"
    report = fxreduce.report(fxreduce.fuse(model, cost="flops"))
    path.write_text(report.to_html(), encoding="utf-8")
    assert path.stat().st_size < 3_000_000
    _, console = opened(path, tmp_path / "profile")
    assert console == ""
