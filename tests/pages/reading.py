"""Parses a page, for tests of its elements and scripts."""

import base64
import hashlib
import re
from html.parser import HTMLParser

ELEMENTS = {
    *("html", "head", "meta", "title", "style", "body", "header", "section", "h1", "h2", "h3", "p", "div", "span"),
    *("b", "strong", "em", "small", "i", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"),
    *("figure", "figcaption", "svg", "line", "text", "path", "rect"),
    *("fieldset", "label", "input", "details", "summary", "pre", "progress", "noscript", "script"),
}


class Reading(HTMLParser):
    """The elements and attributes of a page, and its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.scripts: list[str] = []
        self._is_script = False

    @classmethod
    def of(cls, page: str) -> "Reading":
        """Return the parsed page."""
        found = cls()
        found.feed(page)
        found.page = page
        return found

    page = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self._is_script = tag == "script"
        if self._is_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._is_script = False

    def handle_data(self, data: str) -> None:
        if self._is_script:
            self.scripts[-1] += data

    def check_self_contained(self) -> None:
        """Check that the page has only the script that its policy allows, and loads or runs nothing else."""
        (script,) = self.scripts
        allowed = re.findall(r"script-src '(?:sha256-([^']*))'", self.page)
        assert allowed == [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()]
        assert "default-src 'none'" in self.page
        assert self.elements <= ELEMENTS, self.elements - ELEMENTS
        loading = {"src", "href", "srcset", "action", "data", "formaction"}
        assert not {name for name in self.attributes if name in loading or name.startswith("on")}
        assert "url(" not in self.page
        assert "@import" not in self.page
