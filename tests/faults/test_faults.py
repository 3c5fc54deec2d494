from pathlib import Path

import pytest
import torch
from torch import Tensor

from solon_fl.strategies import RoundReport
from tests.faults.matrix import (
    FAULTS,
    PROCESS_FAULTS,
    Fault,
    Nodes,
    ProcessFault,
    as_markdown,
    processes_as_markdown,
)
from tests.support import small_config, train, vector_of

FAULTY = frozenset({2, 5})  # ids: two of the first group of seven, as many as it bears
ROUNDS = 4
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def honest() -> Tensor:
    return vector_of(train(rounds=ROUNDS)[0].arrays)


def named(report: RoundReport) -> dict[str, set[int]]:
    return {
        "lying": set(report.corrupt_nodes),
        "malformed": set(report.malformed_nodes),
        "silent": set(report.silent_nodes),
    }


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_seen_for_what_it_is_and_changes_nothing(fault: Fault, honest: Tensor) -> None:
    nodes = Nodes(FAULTY)
    result, reports = train(rounds=ROUNDS, mods=[fault.mod(nodes)], timeout=0.1)
    assert nodes.fired == {(node, number) for node in FAULTY for number in range(1, ROUNDS + 1)}
    for report in reports:
        assert report.failed_groups == ()
        expected: dict[str, set[int]] = {"lying": set(), "malformed": set(), "silent": set()}
        if fault.seen != "not at all" and report.round >= fault.first_round:
            expected[fault.seen] = set(FAULTY)
        assert named(report) == expected
    torch.testing.assert_close(vector_of(result.arrays), honest, rtol=1e-5, atol=1e-6)


HARMFUL = [fault for fault in FAULTS if fault.seen != "not at all" and fault.name != "swapped slots"]  # for two only


@pytest.mark.parametrize("fault", HARMFUL, ids=lambda fault: fault.name)
def test_more_faults_than_a_group_bears_fail_it_loudly_and_the_others_train_on(fault: Fault) -> None:
    """Four of seven: that group has no gradient, and the run goes on with the other's."""
    nodes = Nodes(frozenset({1, 2, 5, 6}))
    _, reports = train(rounds=2, mods=[fault.mod(nodes)], timeout=0.1)
    assert nodes.fired
    assert all(report.failed_groups == (0,) for report in reports[fault.first_round - 1 :])
    assert all(report.stepped for report in reports)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_offenders_are_quarantined_and_the_rest_is_enough(fault: Fault, honest: Tensor) -> None:
    nodes = Nodes(FAULTY)
    result, _ = train(small_config(quarantine_after=1), rounds=ROUNDS, mods=[fault.mod(nodes)], timeout=0.1)
    torch.testing.assert_close(vector_of(result.arrays), honest, rtol=1e-5, atol=1e-6)
    rounds = {number for _, number in nodes.fired}
    if fault.seen in ("lying", "malformed"):
        assert rounds == set(range(1, fault.first_round + 1)), "no task after the first offence"
    else:
        assert rounds == set(range(1, ROUNDS + 1)), "silence is no offence"


def test_the_page_shows_the_matrix() -> None:
    page = (ROOT / "docs" / "reference" / "faults.md").read_text()
    assert as_markdown() in page
    assert processes_as_markdown() in page


@pytest.mark.parametrize("fault", PROCESS_FAULTS, ids=lambda fault: fault.name)
def test_the_faults_of_processes_have_their_tests(fault: ProcessFault) -> None:
    path, _, name = fault.test.partition("::")
    assert f"def {name}(" in (ROOT / path).read_text()
