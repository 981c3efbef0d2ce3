"""The directive that describes a pass by the docstring of its module, and draws what it does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from inspect import cleandoc

from docutils import nodes
from examples import EXAMPLES
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from fxreduce.report.drawing import drawing, fates
from fxreduce.report.graph_view import GraphView

_PARTS = ("Restrictions", "Cost", "Source")


class PassDirective(SphinxDirective):
    """Description, Before and After, Restrictions and Cost of one pass."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        module = import_module(f"fxreduce.passes.{name}")
        self.env.note_dependency(module.__file__)
        parts = sections(cleandoc(module.__doc__ or ""))
        if name in EXAMPLES:  # a refitted graph looks as it did
            parts["Before/After"].append(picture(name))
        return [_section(title, content) for title, content in parts.items() if content]


class PictureDirective(SphinxDirective):
    """The graph before and after one pass."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return [picture(self.arguments[0])]


def picture(name: str) -> nodes.Node:
    """What the pass of that name does to its example."""
    before, after = EXAMPLES[name].views(name)
    removed = {node.site for node in before.nodes} - {node.site for node in after.nodes}
    gone = {each for each in removed if each is not None}
    made = ["merged" if node.origins else "kept" for node in after.nodes]
    figures = (
        _figure("Before", before, fates(before, gone, after)),
        _figure("After", after, made),
    )
    return nodes.raw("", f'<div class="rewrite">{"".join(figures)}</div>', format="html")


def sections(text: str) -> dict[str, list[nodes.Node]]:
    """The docstring's parts by title, as nodes."""
    parts: dict[str, list[nodes.Node]] = {
        "Description": [], "Before/After": [], **{title: [] for title in _PARTS},
    }  # fmt: skip
    for block in text.split("\n\n"):
        if block.startswith("    "):
            title = "Before/After" if "Before:" in block else "Description"
            code = cleandoc(block)
            parts[title].append(nodes.literal_block(code, code, language="text"))
            continue
        for title, sentences in _split(" ".join(block.split())):
            parts[title].append(nodes.paragraph("", "", *_inline(sentences)))
    for title in ("Restrictions", "Cost"):
        assert parts[title], f"a pass says its {title}: {text.splitlines()[0]}"
    return parts


def _split(text: str) -> Iterator[tuple[str, str]]:
    """The paragraph's sentences by the part that they belong to."""
    pieces = re.split(rf"(?:^|(?<=\. ))({'|'.join(_PARTS)}): ", text)
    if pieces[0].strip():
        yield "Description", pieces[0].strip()
    for title, sentences in zip(pieces[1::2], pieces[2::2], strict=True):
        yield title, sentences[0].upper() + sentences[1:].strip()


def _inline(text: str) -> list[nodes.Node]:
    pieces = re.split(r"`([^`]+)`", text)
    return [
        nodes.literal(piece, piece) if number % 2 else nodes.Text(piece)
        for number, piece in enumerate(pieces)
    ]


def _section(title: str, content: list[nodes.Node]) -> nodes.section:
    section = nodes.section(ids=[title.lower().replace("/", "-")])
    section += nodes.title(title, title)
    section += content
    return section


def _figure(title: str, view: GraphView, what: list[str]) -> str:
    return f"<figure>{drawing(view, what, title)}<figcaption>{title}</figcaption></figure>"


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives."""
    app.add_directive("pass", PassDirective)
    app.add_directive("pass-picture", PictureDirective)
    return {"parallel_read_safe": True}
