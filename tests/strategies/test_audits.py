"""Audits find more than s liars that agree, and accuse no other node: float noise is not a lie."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context
from torch import Tensor

from solon_fl import SolonConfig
from solon_fl.clients import SolonTask
from solon_fl.errors import ConfigurationError
from solon_fl.strategies.model import ServerModel
from solon_fl.strategies.solon_run import SolonRun
from tests.strategies import lies
from tests.strategies.lies import named, of_another_gradient, play, quarantined, questions, refereed
from tests.support import SGD, Remembering, initial_model, record_of

EVERY = {"exact": "exact", "exact, digests": "exact", "fourier": "fourier", "fourier, digests": "fourier"}


def config_of(name: str, **changes: Any) -> SolonConfig:
    return refereed(code=EVERY[name], verification="digest" if "digests" in name else "algebra", **changes)


ODD = "Group 0: its nodes do not agree with the referee"


@cache
def honest_model() -> Tensor:
    return play(refereed())[0]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("kind", "first_round"),
    [("minus ten times the gradient", 1), ("another gradient", 2), ("half the gradient", 2)],
)
def test_a_whole_group_that_agrees_on_a_lie_is_convicted_by_an_audit_and_the_round_is_right(
    name: str, kind: str, first_round: int
) -> None:
    config = config_of(name, audit=1.0)
    everybody = set(range(1, config.num_nodes + 1))
    model, reports, strategy = play(config, dict.fromkeys(everybody, kind), lambda number, _: number >= first_round)
    torch.testing.assert_close(model, honest_model(), rtol=1e-5, atol=1e-6)
    assert [report.referee_reports[0].reason for report in reports[:first_round]] == first_round * ["audit"]
    assert named(reports[:first_round]) == quarantined(strategy) == everybody
    assert {r.referee_reports[0].reason for r in reports[first_round:]} == {"shares missing"}, "nobody is left"


@pytest.mark.parametrize("name", EVERY)
def test_where_the_referee_may_be_of_another_make_its_gradient_counts_and_nobody_is_convicted(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No round was honest, so nothing shows that the nodes are wrong rather than the referee."""
    config = config_of(name, audit=1.0)
    everybody = dict.fromkeys(range(1, config.num_nodes + 1), "half the gradient")
    model, reports, strategy = play(config, everybody)
    torch.testing.assert_close(model, honest_model(), rtol=1e-5, atol=1e-6)
    assert quarantined(strategy) == named(reports) == set()
    assert ODD in caplog.text


@pytest.mark.parametrize("name", EVERY)
def test_without_an_audit_nobody_can_tell(name: str) -> None:
    """This is why there are audits, and it shows that the test above is not vacuous."""
    config = config_of(name)
    model, reports, _ = play(config, dict.fromkeys(range(1, config.num_nodes + 1), "another gradient"))
    assert not torch.allclose(model, honest_model(), rtol=1e-2)
    assert named(reports) == set()
    assert questions(reports) == 0


def test_one_more_than_s_can_make_another_gradient_of_the_honest_nodes_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of five nodes agree with the other two on a gradient that no node computed. Only they are convicted."""

    def fits(vector: Tensor, task: SolonTask) -> Tensor:
        generator = torch.from_numpy(task.make_code().generator)  # type: ignore[attr-defined]  # a real code has one
        null = torch.linalg.svd(generator[[3, 4]])[2][2].to(vector.dtype)
        return vector + torch.outer(torch.ones(len(vector) // 3), null).reshape(-1)

    monkeypatch.setitem(lies.LIES, "fits", of_another_gradient(fits))
    colluders = dict.fromkeys((1, 2, 3), "fits")
    _, unseen, _ = play(refereed(code="fourier"), colluders)
    assert named(unseen) == set()
    assert questions(unseen) == 0
    model, reports, strategy = play(refereed(code="fourier", audit=1.0), colluders)
    torch.testing.assert_close(model, honest_model(), rtol=1e-5, atol=1e-6)
    assert named(reports) == quarantined(strategy) == {1, 2, 3}


@pytest.mark.slow
def test_they_are_caught_as_often_as_the_probability_says() -> None:
    """Within n rounds with probability 1 - (1 - p)^n: here over 120 runs, within four standard deviations."""
    runs, rounds, probability = 120, 4, 0.3
    config = refereed(byzantine=1, compression=1, audit=probability)
    caught = [0] * rounds  # number of runs, in this round or before
    for seed in range(runs):
        _, reports, strategy = play(
            config, dict.fromkeys((1, 2), "the reverse gradient"), rounds=rounds, projection_seed=seed
        )
        first = next((n for n, report in enumerate(reports) if report.convicted_nodes), rounds)
        assert quarantined(strategy) == ({1, 2} if first < rounds else set())
        for number in range(first, rounds):
            caught[number] += 1
    for number, count in enumerate(caught, start=1):
        expected = 1 - (1 - probability) ** number
        assert abs(count - runs * expected) < 4 * math.sqrt(runs * expected * (1 - expected)), (number, caught)


@pytest.mark.parametrize("seed", [None, 3])
def test_audits_are_drawn_with_the_probability_and_without_a_seed_anew(seed: int | None) -> None:
    def draws(probability: float) -> list[bool]:
        model = ServerModel(record_of(initial_model()), (), SGD)
        run = SolonRun(refereed(audit=probability), model, 1.0, follows_up=True, seed=seed, calibrate=False)
        return [run.draws_audit() for _ in range(4000)]

    drawn = draws(0.25)
    assert abs(sum(drawn) - 1000) < 4 * math.sqrt(750)
    assert (draws(0.25) == drawn) == (seed is not None)
    assert sum(draws(0.0)) == 0
    assert sum(draws(1.0)) == 4000


@pytest.mark.parametrize("name", EVERY)
def test_an_audit_of_honest_nodes_changes_nothing(name: str) -> None:
    model, reports, strategy = play(config_of(name, audit=1.0))
    assert torch.equal(model, play(config_of(name))[0])
    assert [report.referee_reports[0].reason for report in reports] == 4 * ["audit"]
    assert named(reports) == quarantined(strategy) == set()


def test_settings_are_refused_in_words() -> None:
    for changes, text in (
        ({"referee": "me"}, "referee must be True or False; got referee='me'; the referee itself is a parameter"),
        ({"referee": 1}, "referee must be True or False; got referee=1"),
        ({"audit": 1.5}, r"audit must be a probability between 0 and 1; got audit=1\.5; 0\.01 audits each"),
        ({"audit": -0.1}, r"got audit=-0\.1"),
        ({"audit": math.nan}, "audit must be .*; got audit=nan"),
        ({"audit": 0.1, "referee": False}, r"audit=0\.1 needs a referee; got referee=False; set referee=True"),
        ({"group_size": 4}, r"at least byzantine \+ stragglers \+ compression with a referee; got group_size=4"),
        (
            {"group_size": 2, "verification": "digest"},
            r"at least max\(byzantine \+ 1, compression\) \+ stragglers with verification='digest' and a referee",
        ),
    ):
        with pytest.raises(ConfigurationError, match=text):
            refereed(**{"num_nodes": 60, **changes})
    assert refereed().group_size == 5
    assert refereed(stragglers=2).group_size == 7
    assert refereed(byzantine=5, compression=5, stragglers=1, verification="digest").group_size == 7
    assert refereed().quarantine_after == 1
    assert refereed(quarantine_after=3).quarantine_after == 3


# ---- float noise ---------------------------------------------------------------------------------------------


class Noisy(Remembering):
    """The nodes with these ids, including the referee (0), each compute something slightly different."""

    def __init__(self, nodes: set[int], size: float = 1e-7) -> None:
        super().__init__()
        self.nodes, self.size = nodes, size

    def gradient(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
        gradient = super().gradient(arrays, task, context, config)
        if context.node_id not in self.nodes:
            return gradient
        generator = torch.Generator().manual_seed(100 * task.round + context.node_id)
        return gradient * (1 + self.size * torch.randn(gradient.shape, generator=generator))


ALL_AND_REFEREE = set(range(20))


@pytest.mark.parametrize("kind", ["reverse", "another gradient", "nan", "one has none", "digests of zeros", None])
def test_noise_between_nodes_and_referee_accuses_nobody_with_a_real_code(kind: str | None) -> None:
    liars = {} if kind is None else {1: kind, 2: kind}
    for audit in (0.0, 1.0):
        config = refereed(code="fourier", audit=audit)
        model, reports, strategy = play(
            config, liars, lambda server_round, node: server_round > node, client=Noisy(ALL_AND_REFEREE), rounds=6
        )
        torch.testing.assert_close(model, play(config, rounds=6)[0], rtol=1e-4, atol=1e-5)
        is_drowned = kind == "digests of zeros" or (kind == "one has none" and not audit)
        assert named(reports) == quarantined(strategy) == (set() if is_drowned else set(liars))
        assert all(report.failed_groups == () for report in reports)


@pytest.mark.parametrize("name", ["exact", "exact, digests", "fourier, digests"])
@pytest.mark.parametrize("liars", [{}, {1: "reverse"}, {1: "reverse", 2: "noise"}], ids=len)
@pytest.mark.parametrize("size", [1e-7, 4e-7])  # with the smaller one, some of these short shares are equal by chance
def test_a_referee_of_other_bits_accuses_no_honest_node_and_the_log_says_what_is_wrong(
    name: str, size: float, liars: dict[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    """It convicts those liars that are far from its own gradient, where shares are numbers."""
    config = config_of(name, byzantine=2, compression=4, audit=1.0)
    model, reports, strategy = play(
        config, liars, lambda server_round, node: server_round >= 2, referee=Noisy({0}, size)
    )
    torch.testing.assert_close(model, honest_model(), rtol=1e-4, atol=1e-5)
    assert named(reports) | quarantined(strategy) <= set(liars)
    assert quarantined(strategy) == set(liars)
    assert ODD in caplog.text
