"""How the documentation is built: `make docs`, with every warning an error."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
sys.path.append(str(Path(__file__).parents[1]))  # for what writes the benchmarks' results

from sphinx.application import Sphinx

import fxreduce

project = "fxreduce"
author = "the fxreduce authors"
version = release = fxreduce.__version__
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "myst_parser",
    "mathml",
    "passes",
    "benchmark_results",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# Attributes are written down in the docstrings of classes; autodoc lists the members by itself.
napoleon_use_ivar = True
nitpicky = True

_INVENTORIES = {
    "python": "https://docs.python.org/3/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}


def _reachable(address: str) -> bool:
    try:
        with urlopen(f"{address}objects.inv", timeout=3):
            return True
    except (URLError, OSError):
        return False


# Without a network the pages are the same, but for the links to torch and Python.
intersphinx_mapping = {n: (a, None) for n, a in _INVENTORIES.items() if _reachable(a)}
# Names of other projects, type variables, and aliases that autodoc writes by their short names.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|matplotlib|collections|typing|pathlib|os|dataclasses)\..*"),
    (r"py:.*", r"(nn\.)?(Any|Callable|Collection|Figure|GraphModule|Iterable|Mapping|Module|Node)"),
    (r"py:.*", r"(nn\.)?(ExportedProgram|Literal|PathLike|Path|Sequence|Tensor|optional)"),
    (r"py:.*", r"Forward|Model|SiteImportance|Fingerprint|Region|Reader|Operator|Target|Argument"),
    (r"py:.*", r"fxreduce\.(calibration|graph|dynamo|operators|planning|passes|report)\..*"),
    (r"py:.*", r"fxreduce\.schedules\.\w+\..*"),
]


def _as_restructured_text(
    app: Sphinx,  # noqa: ARG001
    what: str,  # noqa: ARG001
    name: str,  # noqa: ARG001
    obj: object,  # noqa: ARG001
    options: object,  # noqa: ARG001
    lines: list[str],
) -> None:
    """What reStructuredText would read otherwise than a person does.

    Napoleon takes "a, b: text" for one name: fields become "a/b: text", errors a line each. What
    stands between bars, |w|, is no substitution.
    """
    lines[:] = [line.replace("|", "\\|") for line in lines]
    several = re.compile(r"^( +)(\w+(?:, \w+)+): ?(.*)")
    for place, line in reversed(list(enumerate(lines))):
        if (found := several.match(line)) is None:
            continue
        indent, names, text = found.groups()
        if names.endswith("Error"):
            lines[place : place + 1] = [f"{indent}{each}: {text}" for each in names.split(", ")]
        else:
            lines[place] = f"{indent}{names.replace(', ', '/')}: {text}"


def setup(app: Sphinx) -> None:
    """Before Napoleon reads the docstrings."""
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=100)


html_theme = "furo"
html_title = "fxreduce"
html_static_path = ["_static", "../fxreduce/report/graph.css"]
html_css_files = ["graph.css", "docs.css"]
html_show_sphinx = False
html_show_copyright = False
