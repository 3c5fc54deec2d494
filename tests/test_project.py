"""Versions, addresses and commands that stand in several files agree."""

import re
import runpy
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
URLS = PROJECT["urls"]
WORKFLOWS = {path.name: path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")}
PREFIX = "Programming Language :: Python :: "
PYTHONS = [kind.removeprefix(PREFIX) for kind in PROJECT["classifiers"] if kind.startswith(PREFIX + "3.")]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("*.cff"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.yml")]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["version"]
    assert f"\nversion: {version}\n" in TEXTS["CITATION.cff"]
    assert version in TEXTS["CHANGELOG.md"]


def test_there_is_one_address_of_the_repository_and_one_of_the_documentation() -> None:
    repository, documentation = URLS["Repository"], URLS["Documentation"]
    assert all(url.startswith(repository) for name, url in URLS.items() if name != "Documentation")
    assert f'repository-code: "{repository}"' in TEXTS["CITATION.cff"]
    assert f'\nurl: "{documentation}"' in TEXTS["CITATION.cff"]
    owner, name = repository.split("/")[-2:]
    for path, text in TEXTS.items():
        ours = re.findall(rf"https://github\.com/(?:{owner}/[\w-]+|[\w-]+/{name}\b)", text)
        assert set(ours) <= {repository}, path
        ours = re.findall(rf"https://[\w-]*{name}[\w-]*\.readthedocs\.io", text)
        assert set(ours) <= {documentation}, path


def test_the_python_versions_are_the_same_everywhere() -> None:
    oldest, newest = PYTHONS[0], PYTHONS[-1]
    assert PROJECT["requires-python"] == f">={oldest}"
    assert SETTINGS["tool"]["mypy"]["python_version"] == oldest
    assert SETTINGS["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert f'python: ["{oldest}", "{newest}"]' in WORKFLOWS["tests.yml"]
    texts = "".join([*WORKFLOWS.values(), (ROOT / ".readthedocs.yaml").read_text()])
    assert set(re.findall(r'python(?:-version)?: "([\d.]+)"', texts)) == {newest}


def test_workflows_run_make_targets_only() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    commands = re.findall(r"\brun: (.*)", "".join(WORKFLOWS.values()))
    assert {"make test", "make docs", "make dist"} <= set(commands)
    assert set(commands) <= {f"make {target}" for target in targets}


def test_the_readme_on_pypi_has_no_relative_links() -> None:
    shown = runpy.run_path(str(ROOT / "setup.py"))["readme_for_pypi"]()
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", shown, flags=re.DOTALL))
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    raw = re.findall(r"https://raw\.githubusercontent\.com/[\w-]+/[\w-]+/v[\d.]+/([^)\s]+)", shown)
    assert all((ROOT / path).exists() for path in raw)


def test_the_files_that_contributing_names_exist() -> None:
    text = TEXTS["CONTRIBUTING.md"]
    paths = set(re.findall(r"`((?:solon_fl|tests|docs|benchmarks)/[\w/.-]+)`", text))
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
    rules = (ROOT / "solon_fl/simulations/run/strategies.py").read_text()
    attacks = (ROOT / "solon_fl/simulations/attacks/registry.py").read_text()
    for name in re.findall(r"`(_[a-z]\w+|_[A-Z]\w+)`", text):
        assert f" {name}(" in rules + attacks, name
