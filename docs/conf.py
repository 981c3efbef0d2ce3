"""How the documentation is built: `make docs`, with every warning an error."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

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
    (r"py:.*", r"(nn\.|fx\.)?(Any|Callable|ClassVar|Collection|ExportedProgram|Figure|GraphModule|"
               r"Iterable|Literal|Mapping|Module|Node|PathLike|Path|Sequence|Tensor|Protocol|optional)"),
    (r"py:.*", r"(Forward|Model|SiteImportance|Fingerprint|Region|Reader|Operator|Target|T)"),
    (r"py:.*", r"(bool|float|int|str|dict|tuple|list|None|\[.*\]|.* .*|O|tuple\[.*)"),
    (r"py:.*", r"fxreduce\.(calibration|graph|dynamo|operators|planning|passes|report)\..*"),
]  # fmt: skip

html_theme = "furo"
html_title = "fxreduce"
html_static_path = ["_static", "../fxreduce/report/graph.css"]
html_css_files = ["graph.css", "docs.css"]
html_show_sphinx = False
