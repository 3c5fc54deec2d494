"""Make the README's relative links absolute: PyPI shows the README without the files that it links to.

All other metadata is in pyproject.toml.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent


def readme_for_pypi() -> str:
    """Return the README with links to this version's files on GitHub."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    repository, tag = project["urls"]["Repository"], f"v{project['version']}"
    raw = repository.replace("https://github.com/", "https://raw.githubusercontent.com/")

    def absolute(match: re.Match[str]) -> str:
        start, path = match.groups()
        base = f"{raw}/{tag}" if path.endswith((".png", ".svg")) else f"{repository}/blob/{tag}"
        return f"{start}{base}/{path}"

    # Markdown links and images, and HTML attributes; neither web addresses (they have a colon) nor bare anchors.
    link = r"""(\]\(|(?:src|srcset|href)=["'])([^)\s"'#:]+)(?=[)\s"'#])"""
    return re.sub(link, absolute, (ROOT / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    from setuptools import setup

    setup(long_description=readme_for_pypi(), long_description_content_type="text/markdown")
