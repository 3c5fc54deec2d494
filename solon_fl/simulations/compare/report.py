"""The report of a comparison: one self-contained HTML page."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from solon_fl.pages import page_html, write_page
from solon_fl.simulations.compare.results import Results
from solon_fl.simulations.compare.view import view_of
from solon_fl.simulations.extras import simulation_extra

__all__ = ["write_report"]


def write_report(results: Results, path: Path, command: Sequence[str] = ()) -> None:
    """Write one HTML page with the verdict, accuracies, curves, times and settings. It loads nothing from elsewhere.

    Parameters
    ----------
    results : Results
        The results of all runs, or of those that are finished.
    path : Path
        The file to write.
    command : sequence of str, optional
        The command line that made the results, to be shown on the page.

    Raises
    ------
    ConfigurationError
        If jinja2 is not installed.
    """
    view = view_of(results)
    with simulation_extra("reports"):
        page = page_html("report.html", title=view.title, view=view, command=shlex.join(command))
    write_page(path, page)
