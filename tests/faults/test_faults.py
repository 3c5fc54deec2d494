from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.serverapp.strategy import Result
from torch import Tensor

from solon_fl.strategies import RoundReport
from tests.faults.matrix import (
    DIGEST_FAULTS,
    FAULTS,
    OPTIONS,
    PROCESS_FAULTS,
    Fault,
    Nodes,
    ProcessFault,
    as_markdown,
    options_as_markdown,
    processes_as_markdown,
)
from tests.support import REMEMBERING, initial_model, record_of, small_config, train, vector_of

FAULTY = frozenset({2, 5})  # ids: two of the first group of seven, as many as it tolerates
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
        "outvoted": {node for group in report.groups for node in group.different_bits},
    }


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_seen_for_what_it_is_and_changes_nothing(fault: Fault, honest: Tensor) -> None:
    nodes = Nodes(FAULTY)
    result, reports = train(rounds=ROUNDS, mods=[fault.mod(nodes)], timeout=0.1)
    assert nodes.fired == {(node, number) for node in FAULTY for number in range(1, ROUNDS + 1)}
    for report in reports:
        assert report.failed_groups == ()
        expected: dict[str, set[int]] = {how: set() for how in named(report)}
        if fault.seen != "not at all" and report.round >= fault.first_round:
            expected[fault.seen] = set(FAULTY)
        assert named(report) == expected
    torch.testing.assert_close(vector_of(result.arrays), honest, rtol=1e-5, atol=1e-6)


HARMFUL = [fault for fault in FAULTS if fault.seen != "not at all" and fault.name != "swapped slots"]  # needs two


@pytest.mark.parametrize("fault", HARMFUL, ids=lambda fault: fault.name)
def test_more_faults_than_a_group_bears_fail_it_loudly_and_the_others_train_on(fault: Fault) -> None:
    """Four of seven nodes are faulty: their group has no gradient, and the run goes on with the other group's."""
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


OTHERS = tuple(option for option in OPTIONS if OPTIONS[option])  # without the defaults, which are tested above
ALL = [(option, fault) for option in OTHERS for fault in FAULTS]
ALL += [(option, fault) for option in OTHERS if "verification" in OPTIONS[option] for fault in DIGEST_FAULTS]
FEW_ROUNDS = 2


@cache
def honest_model(option: str, rounds: int) -> Tensor:
    return vector_of(train_under(option, rounds=rounds)[0].arrays)


def train_under(option: str, **arguments: Any) -> tuple[Result, list[RoundReport]]:
    config = small_config(**OPTIONS[option], **arguments.pop("changes", {}))
    return train(config, referee=REMEMBERING if config.referee else None, **arguments)


@pytest.mark.parametrize(("option", "fault"), ALL, ids=lambda value: value if isinstance(value, str) else value.name)
def test_under_every_option_a_fault_changes_nothing_and_no_honest_node_is_named(option: str, fault: Fault) -> None:
    """The law of all options. If all nodes compute in fixed places, the faulty ones are named in every round."""
    config = small_config(**OPTIONS[option])
    nodes = Nodes(FAULTY)
    result, reports = train_under(option, rounds=FEW_ROUNDS, mods=[fault.mod(nodes)], timeout=0.1)
    model = vector_of(result.arrays)
    torch.testing.assert_close(model, honest_model(option, FEW_ROUNDS), rtol=1e-5, atol=1e-6)
    assert len(reports) == FEW_ROUNDS
    assert all(report.failed_groups == () for report in reports)
    offences: Counter[int] = Counter()
    for report in reports:
        seen = named(report)
        assert set.union(*seen.values()) <= FAULTY
        reasons = {node: why for group in report.groups for node, why in group.malformed_nodes.items()}
        failed = {node for node, reason in reasons.items() if reason.startswith("error ")}
        offences.update(seen["lying"] | seen["malformed"] - (failed if config.referee else set()))
        if config.quarantine_after is None and config.regroup == "never":
            seen_as = fault.seen if report.round >= fault.first_round else "not at all"
            assert seen == {how: set(FAULTY) if how == seen_as else set() for how in seen}
    asked = {(node, report.round) for report in reports for group in report.groups for node in group.nodes}
    assert nodes.fired == {(node, number) for node, number in asked if node in FAULTY}
    if config.referee and fault.seen not in ("silent", "not at all"):
        assert set.union(*(seen for report in reports for seen in named(report).values())) == FAULTY
    if config.quarantine_after == 1:
        assert set(offences.values()) <= {1}, "a node is caught once, and gets no more tasks"


@pytest.mark.parametrize("option", OTHERS)
@pytest.mark.parametrize("fault", HARMFUL, ids=lambda fault: fault.name)
def test_under_every_option_more_faults_than_borne_never_pass_for_a_result(option: str, fault: Fault) -> None:
    """The round is skipped and reported, or its result is right nevertheless, as it always is with a referee."""
    config = small_config(**OPTIONS[option])
    if fault.name == "copied share" and config.regroup == "round":
        pytest.skip("four copies and the original, by chance in one group, are the shares of another gradient")
    nodes = Nodes(frozenset({1, 2, 3, 5}))
    changes = {"on_group_failure": "skip"}
    result, reports = train_under(option, changes=changes, rounds=1, mods=[fault.mod(nodes)], timeout=0.1)
    report = reports[0]
    assert report.stepped == (report.failed_groups == ())
    assert report.stepped or not config.referee
    assert not named(report)["lying"] - nodes.faulty
    if report.stepped:
        torch.testing.assert_close(vector_of(result.arrays), honest_model(option, 1), rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(vector_of(result.arrays), vector_of(record_of(initial_model())))


def test_the_page_shows_the_matrix() -> None:
    page = (ROOT / "docs" / "reference" / "faults.md").read_text()
    assert as_markdown() in page
    assert as_markdown(DIGEST_FAULTS) in page
    assert options_as_markdown() in page
    assert processes_as_markdown() in page


@pytest.mark.parametrize("fault", PROCESS_FAULTS, ids=lambda fault: fault.name)
def test_the_faults_of_processes_have_their_tests(fault: ProcessFault) -> None:
    path, _, name = fault.test.partition("::")
    assert f"def {name}(" in (ROOT / path).read_text()
