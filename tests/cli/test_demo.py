from pathlib import Path

import pytest

from tests.cli.command import solon_fl


@pytest.mark.slow
def test_the_demo_runs(tmp_path: Path) -> None:
    done = solon_fl("demo", "--rounds", "1", "--output", str(tmp_path))
    assert done.exit_code == 0, done.output
    for words in ("24 nodes, 5 of them liars", "MultiKrum", "min-max", "Report: "):
        assert words in done.stdout
    assert (tmp_path / "report.html").is_file()


def test_an_output_that_is_no_folder_is_told_before_anything_is_run(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = solon_fl("demo", "--output", str(file))
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: output must be a folder that can be written to; got output='{file}'")
    assert list(tmp_path.iterdir()) == [file]
