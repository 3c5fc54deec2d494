"""Sphinx builds the documentation from this folder: `make docs`."""

import importlib.metadata
import os
import re
import sys
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]

project = "solon-fl"
author = "The solon-fl developers"
copyright = f"{author}, Apache-2.0"
release = importlib.metadata.version("solon-fl")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinxcontrib.programoutput",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4  # as on GitHub, so that page.md#heading works there and here

default_role = "py:obj"  # `SolonStrategy` in a docstring is a link where it can be
add_module_names = False
autodoc_inherit_docstrings = False  # Flower's docstrings describe Flower
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_use_rtype = False

# Typer and Rich take the width and the colours of the terminal; the pages of commands have neither.
os.environ |= {"COLUMNS": "88", "TERMINAL_WIDTH": "88", "NO_COLOR": "1", "TERM": "dumb"}
os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
programoutput_use_ansi = False

html_theme = "furo"
html_title = f"solon-fl {release}"
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}

# `make docs-links` asks for every address; these answer people, but not programs.
linkcheck_ignore = [rf"{re.escape(REPOSITORY)}/.*"]
linkcheck_timeout = 20

LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def point_to_repository(app: Sphinx, page: str, source: list[str]) -> None:
    """Let links to files outside docs/, which work in a checkout, lead to the repository."""
    folder = (Path(app.srcdir) / page).parent

    def address(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / link[1]))
        if target.is_relative_to(app.srcdir) or not target.exists():
            return link[0]
        kind = "tree" if target.is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{target.relative_to(ROOT).as_posix()}{link[2] or ''})"

    source[0] = LINK.sub(address, source[0])


def setup(app: Sphinx) -> None:
    """Register what this file adds to Sphinx."""
    app.connect("source-read", point_to_repository)
