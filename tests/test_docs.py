"""Every public name is on an API page, and every page in a table of contents."""

import re
from pathlib import Path

from tests.test_public_names import PUBLIC_NAMES

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {page.relative_to(DOCS).with_suffix("").as_posix(): page.read_text() for page in DOCS.rglob("*.md")}


def test_every_public_name_is_on_an_api_page() -> None:
    pages = "".join(text for name, text in PAGES.items() if name.startswith("reference/api/"))
    documented = set(re.findall(r"^   (\w+)$|^\.\. py:data:: (\w+)$", pages, flags=re.M))
    documented = {name or data for name, data in documented}
    for module, names in PUBLIC_NAMES.items():
        assert set(names) <= documented, module.__name__


def test_every_page_is_in_a_table_of_contents() -> None:
    reached = {"index"}
    for name, text in PAGES.items():
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, flags=re.DOTALL):
            entries = re.findall(r"^(?:[^:<\n]*<)?([\w./-]+)>?$", tree, flags=re.M)
            reached |= {(Path(name).parent / entry).as_posix() for entry in entries}
    assert set(PAGES) - reached == set()
