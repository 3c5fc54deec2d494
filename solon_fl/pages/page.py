"""Renders templates to pages that load nothing and run only their own script."""

import base64
import hashlib
import os
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["page_html", "templates_are_there", "write_page"]

FOLDER = "solon_fl.pages"


def templates_are_there() -> bool:
    """Return whether jinja2, which renders the templates, is installed."""
    return find_spec("jinja2") is not None


def page_html(template: str, **values: Any) -> str:
    """Render a page.

    Parameters
    ----------
    template : str
        Name of a file in the folder templates.
    **values
        Values for the template. Any text in them is escaped, and never becomes markup or script.

    Raises
    ------
    ImportError
        If jinja2 is not installed.

    Notes
    -----
    Escaping keeps text from files and nodes from becoming markup. The page's content security policy is a second line
    of defence: a browser runs only the script with the hash that it names, and loads nothing.
    """
    import jinja2

    script = _text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment(jinja2).get_template(template)
    html: str = page.render(script=script, script_hash=digest, style=_text("page.css"), **values)
    return html


def write_page(path: Path, html: str) -> None:
    """Write a page atomically: readers see the old page or the new one. Its folder is created if necessary.

    Raises
    ------
    OSError
        If the file can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(html, encoding="utf-8", errors="replace")
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


@cache
def _environment(jinja2: Any) -> Any:
    return jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_text),
    )


@cache
def _text(name: str) -> str:
    return (resources.files(FOLDER) / "templates" / name).read_text(encoding="utf-8")
