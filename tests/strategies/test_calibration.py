"""Nodes with noise of a known size, and liars among them: what is measured, which nodes are named, what follows."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp.typing import Mod
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from solon_fl.clients import Batch, SolonTask
from solon_fl.coding import CertificateWarning, FourierCode, RealDecoder
from solon_fl.coding.sections import Sections
from solon_fl.config import CodeName
from solon_fl.errors import ConfigurationError, GroupFailedError, NodesMissingError, RefereeError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Constant, NotFinite, RandomGaussian, Reverse
from solon_fl.simulations.attacks.mods import MALFORMATIONS, attack_mod, malformed_mod, silent_mod
from solon_fl.strategies import Calibration, Checkpoints, RoundReport, SolonStrategy, buffer_names, calibrate
from solon_fl.strategies.calibrated import MARGIN, _rounded_up
from solon_fl.strategies.comparing import LARGEST_NOISE, compare, mixing_slots
from solon_fl.wire import to_array, trusted_tensor
from tests.support import SGD, Regression, initial_model, record_of, share_array, small_config, spoil, train, vector_of

LIARS = {2, 5, 9, 14}  # ids: two of each group of seven
ALL = set(range(1, 15))


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 200), nn.Tanh(), nn.Linear(200, 1))


def changed(change: Callable[[Tensor, int], Tensor], nodes: set[int]) -> Mod:
    """Return a mod by which nodes change their shares, given their id."""

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        if context.node_id in nodes:
            share = trusted_tensor(share_array(reply.content)["share"]).clone()
            reply.content["share"] = ArrayRecord({"share": to_array(change(share, context.node_id))})
        return reply

    return mod


def noisy(size: float, nodes: set[int] = ALL) -> Mod:
    """Return a mod that adds noise of that relative size to shares, different in every message."""
    rng = torch.Generator().manual_seed(7)

    def add(share: Tensor, _: int) -> Tensor:
        noise = torch.randn(share.shape, generator=rng)
        return share + size * share.norm() * noise / noise.norm() if size else share

    return changed(add, nodes)


def only(mod: Mod, nodes: set[int]) -> Mod:
    """Return a mod for these nodes only. Attack mods know nodes by their slot, which is the same for all nodes here."""

    def chosen(message: Message, context: Context, call_next: Any) -> Message:
        return (mod if context.node_id in nodes else pass_on)(message, context, call_next)

    def pass_on(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        return reply

    return chosen


def calibrated(
    *mods: Mod, make_model: Callable[[], nn.Module] = wide, timeout: float = 0.2, **changes: Any
) -> Calibration:
    arguments = {name: changes.pop(name) for name in ("rounds", "liars") if name in changes}
    config, model = small_config(**changes), initial_model(make_model)
    grid = InProcessGrid(Regression(make_model).client_app(list(mods)), config.num_nodes)
    return calibrate(grid, record_of(model), config, buffers=buffer_names(model), timeout=timeout, **arguments)


# ---- honest nodes --------------------------------------------------------------------------------------------


def test_equal_nodes_are_found_to_be_identical_and_the_floor_is_kept() -> None:
    found = calibrated(rounds=2)
    assert found.identical
    assert (found.noise, found.rtol) == (0.0, 1e-6)
    assert found.certificate == small_config().make_decoder().certificate
    assert found.distances == dict.fromkeys(ALL, 0.0)
    assert (found.outliers, found.malformed, found.silent, found.warnings) == ((), {}, (), ())
    assert found.groups == (tuple(range(1, 8)), tuple(range(8, 15)))


def test_float64_shares_have_a_floor_of_their_own() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wide().double()

    class Double(Regression):
        def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
            inputs = torch.randn(8, 7, generator=batch.generator(), dtype=torch.float64).to(
                next(model.parameters()).device
            )
            loss: Tensor = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            return loss

    grid = InProcessGrid(Double(lambda: wide().double()).client_app([noisy(1e-9)]), 14)
    found = calibrate(grid, record_of(model), small_config(rtol=1e-12))
    assert 1e-9 < found.rtol < 1e-8
    grid = InProcessGrid(Double(lambda: wide().double()).client_app(), 14)
    found = calibrate(grid, record_of(model), small_config())
    assert (found.rtol, found.identical, found.exact) == (1e-12, True, False)


@pytest.mark.parametrize("size", [1e-7, 1e-5, 1e-4])
def test_noise_is_measured_within_a_factor_of_two(size: float) -> None:
    found = calibrated(noisy(size))
    assert size / 2 < found.noise < 2 * size
    assert found.rtol == _rounded_up(max(4 * found.noise, 1e-6))
    assert not (found.identical)
    assert not (found.exact)
    assert found.outliers == ()


def run(rtol: float, *mods: Mod, rounds: int = 3, **arguments: Any) -> tuple[SolonStrategy, list[RoundReport], Tensor]:
    reports: list[RoundReport] = []
    strategy = SolonStrategy(small_config(rtol=rtol), SGD, on_round=reports.append, **arguments)
    grid = InProcessGrid(Regression(wide).client_app(list(mods)), 14)
    result = strategy.start(grid, record_of(initial_model(wide)), num_rounds=rounds, timeout=0.5)
    return strategy, reports, vector_of(result.arrays)


def test_groups_that_fail_at_the_default_are_decoded_at_the_rtol_that_was_measured() -> None:
    with pytest.raises(GroupFailedError, match=r"within rtol \(the shares disagree in: parameters\)"):
        run(1e-6, noisy(1e-5), projection_seed=0)
    found = calibrated(noisy(1e-5))
    _, reports, _ = run(found.rtol, noisy(1e-5))
    assert {group.status for report in reports for group in report.groups} == {"clean"}


def test_a_few_nodes_of_another_kind_count_only_if_nobody_lies() -> None:
    found = calibrated(noisy(1e-5, {3, 10}))
    assert found.rtol == 1e-6
    assert found.outliers == (3, 10)
    assert found.identical
    assert "nodes 3, 10 may lie, or have other hardware" in found.warnings[0]
    trusting = calibrated(noisy(1e-5, {3, 10}), liars=0)
    assert 0.5e-5 < trusting.noise < 2e-5
    assert trusting.outliers == ()


def test_more_rounds_find_the_largest_noise() -> None:
    noises = {1: noisy(1e-6), 2: noisy(3e-5), 3: noisy(1e-6)}

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        server_round = int(str(message.content.config_records["config"]["server-round"]))
        return noises[server_round](message, context, call_next)

    assert calibrated(mod, rounds=1).noise < 1e-5
    assert calibrated(mod, rounds=3).noise > 1e-5


# ---- liars ---------------------------------------------------------------------------------------------------


def flip_a_bit(reply: Message) -> Message:
    share = trusted_tensor(share_array(reply.content)["share"])
    share.view(torch.int32)[0] ^= 1
    reply.content["share"] = ArrayRecord({"share": to_array(share)})
    return reply


LIES: dict[str, tuple[Mod, str]] = {
    "reverse": (only(attack_mod(Reverse()), LIARS), "outliers"),
    "constant": (only(attack_mod(Constant()), LIARS), "outliers"),
    "random": (only(attack_mod(RandomGaussian()), LIARS), "outliers"),
    "huge": (only(attack_mod(Reverse(1e30)), LIARS), "outliers"),
    "nan": (only(attack_mod(NotFinite()), LIARS), "malformed"),
    "inf": (only(attack_mod(NotFinite(float("-inf"))), LIARS), "malformed"),
    "silent": (only(silent_mod(), LIARS), "silent"),
    "one-share": (changed(lambda share, _: torch.ones_like(share), LIARS), "outliers"),
    "zero": (changed(lambda share, _: torch.zeros_like(share), LIARS), "outliers"),
    "huge-entry": (changed(lambda share, _: share.index_fill(0, torch.tensor([0]), 3e38), LIARS), "outliers"),
    "twice-noise": (changed(lambda share, _: share * (1 + 3e-4), LIARS), "outliers"),
    **{how: (only(malformed_mod(None, how), LIARS), "malformed") for how in MALFORMATIONS},
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("size", [0.0, 1e-5])
def test_liars_are_named_and_do_not_move_rtol(name: str, size: float) -> None:
    mod, named_as = LIES[name]
    found = calibrated(mod, noisy(size, ALL - LIARS))
    assert set(getattr(found, named_as)) == LIARS
    assert len(found.outliers) + len(found.malformed) + len(found.silent) == len(LIARS)
    assert found.noise <= 2 * size
    assert found.rtol <= max(8 * size, 1e-6)
    assert found.identical == (size == 0)


def test_a_flipped_bit_is_below_rtol_and_makes_the_nodes_not_identical() -> None:
    found = calibrated(spoil(flip_a_bit, {2}))
    assert not found.identical
    assert (found.outliers, found.rtol) == ((), 1e-6)


def test_liars_just_below_the_largest_noise_get_at_most_the_documented_rtol_even_if_they_are_too_many() -> None:
    def push(share: Tensor, node_id: int) -> Tensor:
        return share * (1 + 0.99 * LARGEST_NOISE * (1 if node_id % 2 else -0.5))

    for liars in (LIARS, ALL - {1, 8}):
        found = calibrated(changed(push, liars), liars=0)
        assert 1e-3 < found.rtol <= MARGIN * LARGEST_NOISE
    robust = calibrated(changed(push, LIARS))
    assert (robust.rtol, set(robust.outliers)) == (1e-6, LIARS)


def test_what_differs_by_more_than_noise_can_is_never_counted_even_if_all_nodes_are_taken_for_honest() -> None:
    found = calibrated(changed(lambda share, _: share * (1 + 1.1 * LARGEST_NOISE), LIARS), liars=0)
    assert (found.rtol, set(found.outliers)) == (1e-6, LIARS)
    assert found.warnings == ()


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 6), st.sampled_from([0.0, 1e-7, 1e-5]))
def test_no_s_liars_can_make_the_noise_larger_than_the_honest_nodes_distances(
    seed: int, liars: int, more: int, size: float
) -> None:
    rng = torch.Generator().manual_seed(seed)
    truth = torch.randn(40, generator=rng, dtype=torch.float64)
    honest = [truth + size * torch.randn(40, generator=rng, dtype=torch.float64) for _ in range(liars + more)]
    scale = 10 ** (-9 + 10 * float(torch.rand((), generator=rng)))
    lie = torch.randn(40, generator=rng, dtype=torch.float64)
    together = float(torch.rand((), generator=rng)) < 0.5
    lies = [
        truth + scale * (lie if together else torch.randn(40, generator=rng, dtype=torch.float64)) for _ in range(liars)
    ]
    order = torch.randperm(2 * liars + more, generator=rng).tolist()
    result = compare([[*honest, *lies][i] for i in order], liars, Sections.whole(40))
    assert not isinstance(result, str)
    largest = max(float((one - other).norm()) for one in honest for other in honest)
    assert result.noise <= largest / float(result.reference.norm()) * (1 + 1e-9)


def test_more_liars_than_the_code_bears_are_told() -> None:
    mods = only(attack_mod(Reverse()), {1, 2, 3}), only(malformed_mod(), {4})
    found = calibrated(*mods, liars=3, byzantine=1, group_size=14)
    assert found.outliers == (1, 2, 3)
    told = "group 0 has 4 nodes that lie or fail, more than byzantine=1: it can't be decoded."
    assert found.warnings == (told,)


# ---- bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["fourier", "exact"])
def test_nodes_of_one_make_are_told_to_take_the_exact_code(code: CodeName) -> None:
    found = calibrated(code=code)
    assert found.exact
    assert (found.different, found.warnings, found.rtol) == ((), (), 1e-6)
    assert (
        str(found)
        .splitlines()[-1]
        .startswith("all nodes compute the same bits: code='exact' suits (code='fourier': shares")
    )


@pytest.mark.parametrize("code", ["fourier", "exact"])
def test_one_bit_is_seen_in_the_exact_round_alone(code: CodeName) -> None:
    """The nodes differ in the last round only, as if they differed only with deterministic kernels."""
    found = calibrated(in_exact_tasks(flip_a_bit, {2, 9}), code=code)
    assert (found.exact, found.different) == (True, (2, 9)), "as many as may lie"
    assert found.of_node(2) == "0, other bits"
    found = calibrated(in_exact_tasks(flip_a_bit, {1, 2, 3}), code=code)
    assert not found.exact
    assert found.different == (1, 2, 3)
    told = [warning for warning in found.warnings if "(different: nodes 1, 2, 3)" in warning]
    assert len(told) == (code == "exact")


def test_groups_that_are_not_there_are_not_said_to_suit() -> None:
    assert not calibrated(in_exact_tasks(lambda reply: None, {1, 2, 3}), code="exact").exact


def in_exact_tasks(change: Callable[[Message], Message | None], nodes: set[int]) -> Mod:
    """Return a mod by which nodes change their replies in rounds with the exact code."""

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        exact = SolonTask.from_message(message).code == "exact"
        return change(reply) if exact and context.node_id in nodes else reply  # type: ignore[return-value]

    return mod


# ---- nothing to measure --------------------------------------------------------------------------------------


def test_a_group_that_can_not_be_compared_is_told_and_the_others_are_measured() -> None:
    found = calibrated(only(silent_mod(), {1, 2, 3}), noisy(1e-5))
    assert found.silent == (1, 2, 3)
    assert set(found.distances) == set(range(8, 15))
    assert found.warnings[0].startswith("group 0 could not be compared: 4 of its nodes sent a share, but 5 are needed")
    assert 0.5e-5 < found.noise < 2e-5
    assert not found.identical


def test_nodes_that_compute_different_things_are_told_so() -> None:
    different = changed(lambda share, node_id: share * node_id, ALL)
    with pytest.raises(GroupFailedError, match=r"no group could be compared.*do not compute the same"):
        calibrated(different)


@pytest.mark.parametrize(
    ("mod", "reason"),
    [
        (silent_mod(), "0 of its nodes sent a share"),
        (malformed_mod(None, "dtype"), "node 1 sent: dtype of the array"),
        (changed(lambda share, _: torch.zeros_like(share), ALL), "the gradient is zero"),
    ],
)
def test_if_there_is_nothing_to_compare_the_reason_is_told(mod: Mod, reason: str) -> None:
    with pytest.raises(GroupFailedError, match=reason):
        calibrated(mod)


def test_missing_nodes_and_impossible_settings() -> None:
    grid = InProcessGrid(Regression().client_app(), 10)
    with pytest.raises(NodesMissingError, match="num_nodes=14"):
        calibrate(grid, record_of(initial_model()), small_config(), timeout=0.1)
    with pytest.raises(ConfigurationError, match="rounds=0"):
        calibrated(rounds=0)
    with pytest.raises(ConfigurationError, match="liars=4"):
        calibrated(liars=4)


# ---- messages ------------------------------------------------------------------------------------------------


def test_the_table_has_every_node_and_what_was_found_of_it() -> None:
    mods = only(silent_mod(), {3}), only(malformed_mod(None, "shape"), {9}), only(attack_mod(Reverse()), {4})
    lines = str(calibrated(*mods, noisy(1e-5))).splitlines()
    assert lines[0].split() == ["group", "node", "distance"]
    told = {int(line.split()[1]): line.split(maxsplit=2)[2] for line in lines[1:15]}
    assert told[3] == "silent"
    assert told[9].startswith("not a share: shape of the array")
    assert told[4].endswith("an outlier")
    assert "suits, with certificate" in lines[15]


def test_a_certificate_of_one_or_more_is_told_with_a_remedy() -> None:
    found = calibrated(noisy(7e-4))
    assert found.certificate >= 1
    assert "should be below 1: lower byzantine or compression" in found.warnings[-1]
    with pytest.warns(CertificateWarning):
        RealDecoder(FourierCode(group_size=7, compression=3), byzantine=2, rtol=found.rtol)


@pytest.mark.parametrize(
    ("value", "rounded"), [(4e-6, 4e-6), (4.01e-6, 4.1e-6), (1.0000001e-6, 1.1e-6), (9.91e-5, 1e-4), (0.004, 0.004)]
)
def test_rtol_is_rounded_up_to_two_digits(value: float, rounded: float) -> None:
    assert _rounded_up(value) == rounded


def test_the_slots_asked_for_mix_the_chunks() -> None:
    codes = FourierCode(group_size=9, compression=3), FourierCode(group_size=10, compression=6)
    for code in codes:
        slots = mixing_slots(code)
        assert len(slots) >= 4
        for slot in slots:
            assert (np.abs(code.generator[slot]) > 0.1).sum() >= 2


@pytest.mark.parametrize(
    ("byzantine", "compression", "group_size"), [(1, 2, 4), (1, 3, 5), (2, 3, 9), (2, 6, 10), (5, 5, 15), (5, 10, 20)]
)
def test_the_margin_suffices_for_all_slots_even_if_one_chunk_holds_the_whole_gradient(
    byzantine: int, compression: int, group_size: int
) -> None:
    """Each share's noise is then the same fraction of its norm, but the decoder takes rtol of the k-th smallest."""
    generator = FourierCode(group_size=group_size, compression=compression).generator
    norms = np.sort(np.abs(generator), axis=0)  # norms of the shares, by the chunk
    assert (np.sqrt((norms**2).mean(0)) <= MARGIN * norms[compression - 1]).all()


# ---- before the first round ----------------------------------------------------------------------------------


def test_a_strategy_can_calibrate_and_then_decodes_everything(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flwr").propagate = True
    caplog.set_level(logging.INFO, "flwr")
    lie = only(attack_mod(Reverse()), LIARS)
    strategy, reports, _ = run(1e-6, lie, noisy(1e-5), calibrate=True)
    assert 2e-5 < strategy.config.rtol < 8e-5
    assert {group.status for report in reports for group in report.groups} == {"corrected"}
    assert all(set(report.corrupt_nodes) == LIARS for report in reports)
    assert "rtol is raised from 1e-06" in caplog.text
    assert re.search(r"node 14: \d\S*, an outlier", caplog.text)
    assert "node 1:" not in caplog.text


@pytest.mark.parametrize("size", [0.0, 1e-7])
def test_a_calibration_never_lowers_rtol_and_changes_nothing_else(size: float) -> None:
    strategy, _, plain = run(1e-5, noisy(size))
    calibrating, reports, same = run(1e-5, noisy(size), calibrate=True)
    assert calibrating.config == strategy.config
    assert len(reports) == 3
    if size == 0:
        assert torch.equal(plain, same)


def test_started_again_a_strategy_measures_again() -> None:
    strategy = SolonStrategy(small_config(), SGD, calibrate=True)
    rtols = []
    for mods in ([noisy(1e-5)], []):
        grid = InProcessGrid(Regression(wide).client_app(mods), 14)
        strategy.start(grid, record_of(initial_model(wide)), num_rounds=1, timeout=0.5)
        rtols.append(strategy.config.rtol)
    assert rtols[0] > 1e-5
    assert rtols[1] == 1e-6


def test_a_run_that_goes_on_has_the_rtol_that_it_began_with(tmp_path: Path) -> None:
    first, _, _ = run(1e-6, noisy(1e-5), rounds=1, calibrate=True, checkpoints=Checkpoints(tmp_path))
    asked: list[int] = []

    def count(message: Message, context: Context, call_next: Any) -> Message:
        asked.append(context.node_id)
        reply: Message = call_next(message, context)
        return reply

    second, reports, _ = run(1e-6, count, noisy(1e-5), rounds=2, calibrate=True, checkpoints=Checkpoints(tmp_path))
    assert second.config == first.config
    assert len(asked) == 14  # one round: noise is not measured again
    assert reports[0].failed_groups == ()


def test_if_nothing_can_be_measured_rtol_stays_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flwr").propagate = True
    with pytest.raises(GroupFailedError, match="no node sent anything usable in the first round") as caught:
        run(1e-6, silent_mod(), calibrate=True)
    assert "rtol stays 1e-06, as it could not be calibrated: no group could be compared" in caplog.text
    assert torch.equal(vector_of(caught.value.result.arrays), vector_of(record_of(initial_model(wide))))


def test_a_group_that_fails_is_told_how_to_measure(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flwr").propagate = True
    with pytest.raises(GroupFailedError, match="or not within rtol"):
        run(1e-6, noisy(1e-4), rounds=1, projection_seed=0)
    assert "solon_fl.strategies.calibrate" in caplog.text


@pytest.mark.parametrize("mod", [silent_mod({1}), malformed_mod({1}, "shape")], ids=["silent", "malformed"])
def test_one_bad_node_does_not_end_a_run_that_is_calibrated(mod: Mod) -> None:
    """With digests, a group of 2 s + 1 nodes decodes without it, although too few shares are left to compare."""
    config = small_config(num_nodes=3, byzantine=1, compression=2, verification="digest")
    _, reports = train(config, mods=[mod], rounds=2, timeout=0.3, calibrate=True)
    assert all(report.stepped for report in reports)


# ---- a referee -----------------------------------------------------------------------------------------------


def judged(*mods: Mod, referee: Any = None, **changes: Any) -> Calibration:
    """Calibrate seven nodes of one group with a referee; up to four may lie."""
    settings = {"num_nodes": 7, "group_size": 7, "byzantine": 4, "referee": True, **changes}
    config, model = small_config(**settings), initial_model(wide)
    grid = InProcessGrid(Regression(wide).client_app(list(mods)), config.num_nodes)
    return calibrate(grid, record_of(model), config, referee=referee or Regression(wide), timeout=0.2)


def test_with_a_referee_most_nodes_may_lie() -> None:
    liars = {1, 3, 4, 6}
    found = judged(noisy(1e-7), only(attack_mod(Reverse()), liars))
    assert set(found.outliers) == liars
    assert found.noise == pytest.approx(1e-7, rel=0.1)
    assert (found.rtol, found.exact) == (1e-6, False)


def test_the_referees_own_noise_is_measured_and_said() -> None:
    class Other(Regression):
        def gradient(self, *given: Any) -> Tensor:
            gradient: Tensor = super().gradient(*given)
            noise: Tensor = 1e-5 * gradient.norm() / gradient.numel() ** 0.5
            return gradient + noise

    found = judged(referee=Other(wide), code="exact")
    assert found.noise == pytest.approx(1e-5, rel=0.5)
    assert (found.identical, found.exact) == (False, False)
    assert "no node computes the same bits as the referee" in found.warnings[0]
    alike = judged(code="exact", byzantine=2)
    assert (alike.identical, alike.exact, alike.warnings) == (True, True, ())


def test_a_referee_that_fails_ends_the_calibration() -> None:
    class Failing(Regression):
        def gradient(self, *given: Any) -> Tensor:
            raise OSError("no data here")

    with pytest.raises(RefereeError, match=r"the referee failed: .*no data here"):
        judged(referee=Failing(wide))
