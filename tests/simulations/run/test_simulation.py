import dataclasses

import pytest
import torch
from flwr.app import ArrayRecord

from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import ATTACKS, Outcome
from solon_fl.strategies import RoundReport
from tests.simulations.run.small import CONFIG, EXACT, REGROUPED, curve, run
from tests.support import vector_of


@pytest.fixture(scope="module")
def honest() -> Outcome:
    return run()


def assert_same_model(first: ArrayRecord, second: ArrayRecord) -> None:
    torch.testing.assert_close(vector_of(first), vector_of(second), rtol=1e-4, atol=1e-6)


NAMED_AS = {
    **dict.fromkeys(("nan", "inf", "malformed", "crash"), "malformed"),
    **dict.fromkeys(("silent", "late"), "silent"),
}


@pytest.fixture(scope="module")
def long_honest() -> Outcome:
    return run(rounds=5)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_under_every_attack_training_ends_where_it_does_without(attack: str, long_honest: Outcome) -> None:
    outcome = run(attack=attack, rounds=5)
    assert_same_model(outcome.arrays, long_honest.arrays)
    assert curve(outcome) == pytest.approx(curve(long_honest), abs=0.003)
    liars = outcome.scenario.liars
    if attack == "bit-flip":  # some flips are below the float noise; all others are lies or NaN
        assert set(outcome.offences) <= liars
        assert outcome.offences
        return
    if attack == "partial-collusion":  # the first of two liars in a group stays below the tolerance
        liars = frozenset(max(liar for liar in liars if liar // 7 == group) for group in (0, 1))
    if attack == "below-tolerance":
        liars = frozenset()
    kind = NAMED_AS.get(attack, "lying")
    assert outcome.offences == {liar: {kind: 5} for liar in liars}


@pytest.fixture(scope="module")
def exact() -> Outcome:
    return run(config=EXACT)


@pytest.mark.parametrize("attack", ATTACKS)
def test_with_the_exact_code_no_attack_changes_a_bit(attack: str, exact: Outcome) -> None:
    outcome = run(config=EXACT, attack=attack)
    assert outcome.model_sha256 == exact.model_sha256
    assert curve(outcome) == curve(exact)
    kind = NAMED_AS[attack] if attack in ("malformed", "crash", "silent", "late") else "different"
    assert outcome.offences == {liar: {kind: 4} for liar in outcome.liars}


def test_training_learns(honest: Outcome) -> None:
    assert honest.accuracy > honest.records[0].accuracy + 0.2
    assert honest.offences == {}


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(honest: Outcome) -> None:
    again = run()
    assert torch.equal(vector_of(again.arrays), vector_of(honest.arrays))
    assert [r.report.groups[0].residual for r in again.records if r.report] == [
        r.report.groups[0].residual for r in honest.records if r.report
    ]
    other = run(config=dataclasses.replace(CONFIG, seed=1))
    assert not torch.equal(vector_of(other.arrays), vector_of(honest.arrays))


def test_a_diverging_run_of_flowers_strategies_is_reproducible_too() -> None:
    runs = [run(strategy="fedavg", attack="reverse") for _ in range(2)]
    assert torch.equal(*(vector_of(outcome.arrays) for outcome in runs))


def test_computing_once_per_group_changes_nothing(honest: Outcome) -> None:
    again = run(compute_once=False)
    assert torch.equal(vector_of(again.arrays), vector_of(honest.arrays))
    assert [r.unprotected_training_loss for r in again.reports] == [r.unprotected_training_loss for r in honest.reports]


def test_the_training_loss_that_nodes_report_falls(honest: Outcome) -> None:
    losses = [report.unprotected_training_loss for report in honest.reports]
    assert None not in losses
    assert losses[-1] < losses[0]  # type: ignore[operator]  # none of them is None
    assert losses[0] == pytest.approx(
        honest.records[0].loss, rel=0.2
    )  # the loss of the untrained model, on other examples


def test_strategies_whose_nodes_report_no_loss_have_none() -> None:
    assert [report.unprotected_training_loss for report in run(strategy="fedavg", rounds=1).reports] == [None]


def test_honest_fedavg_and_solon_see_the_same_batches(honest: Outcome) -> None:
    assert_same_model(run(strategy="fedavg").arrays, honest.arrays)


@pytest.mark.parametrize("attack", ["reverse", "random", "foe", "nan", "inf"])
def test_plain_averaging_collapses(attack: str, honest: Outcome) -> None:
    assert run(strategy="fedavg", attack=attack).accuracy < honest.accuracy - 0.2


def test_flipped_labels_harm_a_plain_average() -> None:
    config = SolonConfig(num_nodes=14, byzantine=3, compression=1)
    poisoned, honest = (run(config=config, strategy="fedavg", attack=attack) for attack in ("label-flip", None))
    assert poisoned.accuracy < honest.accuracy - 0.1


@pytest.mark.parametrize("attack", ["mimic", "sign-flip", "late", "silent", "crash"])
def test_mild_attacks_change_a_plain_average(attack: str, honest: Outcome) -> None:
    outcome = run(strategy="fedavg", attack=attack)
    assert not torch.allclose(vector_of(outcome.arrays), vector_of(honest.arrays), rtol=0.01)


def test_one_odd_reply_aborts_flowers_fedavg_and_is_a_result() -> None:
    outcome = run(strategy="fedavg", attack="malformed")
    assert outcome.error
    assert len(outcome.records) == 1


def test_alie_follows_the_rounds_for_strategies_without_groups() -> None:
    first, second = (run(strategy="fedavg", attack="alie", rounds=rounds) for rounds in (1, 2))
    assert curve(first) == curve(second)[:2]
    honest_two = run(strategy="fedavg", rounds=2)
    assert not torch.equal(vector_of(second.arrays), vector_of(honest_two.arrays))


def test_local_steps_train_too() -> None:
    config = dataclasses.replace(CONFIG, mode="update")
    outcome, honest = run(config=config, attack="alie"), run(config=config)
    assert_same_model(outcome.arrays, honest.arrays)
    assert outcome.accuracy > 0.4


@pytest.mark.slow
def test_texts_train_too_while_nodes_lie() -> None:
    texts = {"dataset": "synthetic-reviews", "model": "textcnn", "rounds": 3}
    outcome, honest = run(attack="alie", **texts), run(**texts)
    assert len(outcome.records) == 4
    assert outcome.error is None
    assert_same_model(outcome.arrays, honest.arrays)
    assert set(outcome.offences) == outcome.scenario.liars
    assert honest.records[-1].loss < honest.records[0].loss


def test_a_model_that_does_not_fit_the_data_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"model='cnn' needs images; .* choose textcnn"):
        run(dataset="synthetic-reviews", model="cnn")
    with pytest.raises(ConfigurationError, match="model='textcnn' needs texts"):
        run(model="textcnn")


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="batch_size=6000, dataset fashion-mnist-6k has 5000"):
        run(batch_size=6000)


def test_regrouping_changes_no_bit_of_an_honest_run(honest: Outcome, seats: list[RoundReport]) -> None:
    outcome = run(config=REGROUPED)
    assert vector_of(outcome.arrays).equal(vector_of(honest.arrays))
    assert curve(outcome) == curve(honest)
    assert outcome.offences == {}
    groups = [report.groups[0].nodes for report in seats]
    assert len(set(groups)) == 4


@pytest.mark.parametrize("attack", ["reverse", "other-gradient", "alie", "near-codeword", "late", "nan"])
def test_regrouped_liars_change_nothing_and_are_named_in_the_ledger_as_nodes(attack: str, honest: Outcome) -> None:
    """With two liars in all, no group has more than s = 2."""
    outcome = run(config=REGROUPED, attack=attack)
    liars = outcome.scenario.liars
    assert len(liars) == 2
    assert_same_model(outcome.arrays, honest.arrays)
    assert curve(outcome) == curve(honest)
    kind = NAMED_AS.get(attack, "lying")
    assert outcome.offences == {liar: {kind: 4} for liar in liars}
    counts = {int(record.identity.removeprefix("id:")) - 1: getattr(record, kind) for record in outcome.ledger}
    assert counts == {number: 4 if number in liars else 0 for number in range(14)}
    assert {record.rounds for record in outcome.ledger} == {4}


def test_regrouped_colluders_know_each_other_wherever_they_are(seats: list[RoundReport]) -> None:
    """With four liars among 14, those in the same group collude, and more than s of them in a group mislead it."""
    outcome = run(config=REGROUPED, attack="other-gradient", num_liars=4, rounds=20)
    assert len(outcome.reports) == len(seats) == 20
    for report in seats:
        for group in report.groups:
            lying = {node for node in group.nodes if node is not None and node - 1 in outcome.scenario.liars}
            if len(lying) <= 2:
                assert (group.decoded, set(group.corrupt_nodes)) == (True, lying)
            else:
                assert set(group.corrupt_nodes).isdisjoint(lying), "they mislead the group, or it fails"
    placed = [
        sum(node is not None and node - 1 in outcome.scenario.liars for node in report.groups[0].nodes)
        for report in seats
    ]
    assert {2, 3} <= set(placed) | {4 - count for count in placed}


def test_groups_larger_than_2s_and_k_need_more_colluders_to_be_misled(seats: list[RoundReport]) -> None:
    """With r = 10 and k = 2, three or four liars are more than s = 2, but at most t = (r - k) / 2."""
    config = SolonConfig(num_nodes=20, byzantine=2, compression=2, group_size=10, regroup="round")
    honest, outcome = run(config=config), run(config=config, attack="other-gradient", num_liars=4, rounds=8)
    met = 0
    assert len(outcome.reports) == 8
    for report in seats[-8:]:
        for group in report.groups:
            lying = {node for node in group.nodes if node is not None and node - 1 in outcome.scenario.liars}
            assert set(group.corrupt_nodes) == lying
            met = max(met, len(lying))
    assert met > 2
    assert curve(outcome)[:5] == curve(honest)


def test_a_quarantined_liar_stays_out_of_every_group(honest: Outcome) -> None:
    config = dataclasses.replace(REGROUPED, quarantine_after=2)
    outcome = run(config=config, attack="reverse")
    assert_same_model(outcome.arrays, honest.arrays)
    assert outcome.offences == {liar: {"lying": 2} for liar in outcome.scenario.liars}
    states = {int(record.identity.removeprefix("id:")) - 1: record.state for record in outcome.ledger}
    assert {number for number, state in states.items() if state == "quarantined"} == outcome.scenario.liars
