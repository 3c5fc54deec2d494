"""From a template and its values to a page that loads nothing, and runs no script but its own."""

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
    """Return whether jinja2, which fills the templates in, is installed."""
    return find_spec("jinja2") is not None


def page_html(template: str, **values: Any) -> str:
    """Return a page.

    Parameters
    ----------
    template : str
        Name of a file of the folder templates.
    **values
        For the template. Text in them stays text: whatever it holds, it becomes neither markup nor script.

    Raises
    ------
    ImportError
        If jinja2 is not installed.

    Notes
    -----
    Escaping keeps text of files and nodes from becoming markup. Behind it stands the page's content security policy:
    a browser runs the one script whose hash it names, and loads nothing from anywhere.
    """
    import jinja2

    script = _text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment(jinja2).get_template(template)
    html: str = page.render(script=script, script_hash=digest, style=_text("page.css"), **values)
    return html


def write_page(path: Path, html: str) -> None:
    """Write a page so that a reader sees the old one or the new one, never a part; its folder is made if need be.

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
