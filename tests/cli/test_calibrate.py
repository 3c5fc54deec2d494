import pytest

from solon_fl.cli.calibrate import NOT_TAKEN
from solon_fl.cli.meanings import CONFIG, SCENARIO
from tests.cli.command import is_refused, solon_fl

SMALL = ("--nodes", "7", "--compression", "3", "--set", "batch_size=8", "--model", "logistic")


@pytest.mark.slow
def test_the_command_prints_a_table_and_the_line_to_use() -> None:
    done = solon_fl("calibrate", *SMALL, "--threads", "1,2", "--kernels", "onednn,native", "--attack", "reverse")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].split() == ["group", "node", "distance"]
    assert sum(line.endswith("an outlier") for line in lines) == 2
    assert "rtol=1e-06 suits" in done.output
    assert lines[-1] == "To use it (the default): SolonConfig(..., rtol=1e-06)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "1,x"], "--threads '1,x'"),
        (["--threads", "0"], "threads must be from 1 to "),
        (["--verification", "digset"], "verification must be one of algebra, digest; got verification='digset'"),
        (["--kernels", "gpu"], "kernels='gpu'"),
        (["--set", "mode=both"], "mode must be one of gradient, update; got mode='both'"),
        (["--set", "learning_rate=1"], "--set: there is no 'learning_rate'; did you mean local_learning_rate?"),
    ],
)
def test_bad_settings_are_one_plain_message(arguments: list[str], message: str) -> None:
    done = solon_fl("calibrate", *arguments)
    assert is_refused(done), done.output
    assert message in done.stderr


def test_help_leads_to_the_how_to_and_lists_every_key() -> None:
    told = solon_fl("calibrate", "--help").stdout
    assert "docs/how-to/calibrate.md" in " ".join(told.split())
    _, _, table = told.partition("Keys of --set KEY=VALUE")
    keys = {line.split()[0] for line in table.splitlines() if line[1:2].isalpha()}
    own_option = {"num_nodes", "byzantine", "compression", "verification", "attack", "dataset", "model"}
    assert keys == {*CONFIG, *SCENARIO, "key"} - own_option - set(NOT_TAKEN)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("threads", "told"),
    [
        ("1", "You can use digests, too: all nodes compute the same bits."),
        ("1,2", "Don't use digests: nodes compute different bits. Use verification=algebra, in groups of 7."),
    ],
)
def test_calibrate_says_whether_digests_suit(threads: str, told: str) -> None:
    done = solon_fl("calibrate", *SMALL, "--verification", "digest", "--set", "group_size=7", "--threads", threads)
    assert done.exit_code == 0, done.output
    assert told in done.output
