from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon_fl.config import DownlinkName
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.network import (
    DELTA_BYTES,
    NETWORKS,
    Network,
    RoundSeconds,
    bytes_to_node,
    round_seconds,
)

RATES = ("server_download", "server_upload", "node_download", "node_upload")
NETWORK = Network(
    name="test",
    server_download=4e6,
    server_upload=8e6,
    node_download=1e6,
    node_upload=5e5,
    latency=0.5,
    deadline=30.0,
)

rates = st.floats(1e3, 1e11)
networks = st.builds(
    Network,
    name=st.just("drawn"),
    server_download=rates,
    server_upload=rates,
    node_download=rates,
    node_upload=rates,
    latency=st.floats(0, 10),
    deadline=st.floats(0, 100),
)
sizes = st.integers(0, 10**12)


@pytest.mark.parametrize(
    ("num_nodes", "bytes_out", "bytes_in", "seconds"),
    [
        (1, 0, 0, 1.0),  # latency twice
        (4, 4_000_000, 0, 1.0 + 8.0),  # 1 MB a node at 1 Mbit/s; the server's 4 MB take 4 s
        (16, 16_000_000, 0, 1.0 + 16.0),  # the server's 16 MB at 8 Mbit/s; a node's 1 MB takes 8 s
        (4, 0, 1_000_000, 1.0 + 4.0),  # 250 kB a node at 0.5 Mbit/s; the server's 1 MB take 2 s
        (20, 0, 1_000_000, 1.0 + 2.0),  # the server's 1 MB at 4 Mbit/s; a node's 50 kB take 0.8 s
        (4, 4_000_000, 1_000_000, 1.0 + 8.0 + 4.0),
    ],
)
def test_transfers_computed_by_hand(num_nodes: int, bytes_out: int, bytes_in: int, seconds: float) -> None:
    assert NETWORK.transfer_seconds(num_nodes=num_nodes, bytes_out=bytes_out, bytes_in=bytes_in) == seconds


def test_a_referee_prolongs_a_round_by_its_batches() -> None:
    arguments: dict[str, Any] = {"num_nodes": 4, "bytes_out": 0, "bytes_in": 0, "server_seconds": 0.0, "waited": False}
    alone, refereed = (
        round_seconds(NETWORK, batches_per_node=5, batch_seconds=0.5, batches_of_referee=batches, **arguments)
        for batches in (0, 10)
    )
    assert (refereed.computation, refereed.referee) == (2.5, 5.0)
    assert refereed.total == alone.total + 5.0
    with pytest.raises(ConfigurationError, match="got batches_of_referee=-1"):
        round_seconds(NETWORK, batches_per_node=5, batch_seconds=0.5, batches_of_referee=-1, **arguments)


@pytest.mark.parametrize(("waited", "waiting"), [(False, 0.0), (True, 30.0)])
def test_a_round_is_the_sum_of_its_parts(waited: bool, waiting: float) -> None:
    seconds = round_seconds(
        NETWORK,
        num_nodes=4,
        batches_per_node=7,
        batch_seconds=0.25,
        bytes_out=4_000_000,
        bytes_in=1_000_000,
        server_seconds=0.5,
        waited=waited,
    )
    assert seconds == RoundSeconds(computation=1.75, transfer=13.0, server=0.5, waiting=waiting)
    assert seconds.total == 15.25 + waiting


def test_flowers_overheads_are_for_the_round_and_for_each_byte_of_it() -> None:
    seconds = round_seconds(
        replace(NETWORK, round_overhead=3.0, byte_overhead=2e-7),
        num_nodes=4,
        batches_per_node=0,
        batch_seconds=0.0,
        bytes_out=4_000_000,
        bytes_in=1_000_000,
        server_seconds=0.0,
        waited=False,
    )
    assert seconds == RoundSeconds(computation=0.0, transfer=13.0, server=0.0, waiting=0.0, overhead=4.0)
    assert seconds.total == 17.0


@given(networks, st.integers(1, 1000), sizes, sizes, st.sampled_from(RATES), st.floats(1, 1e6))
def test_more_bandwidth_is_never_slower(
    network: Network, num_nodes: int, bytes_out: int, bytes_in: int, rate: str, factor: float
) -> None:
    faster = replace(network, **{rate: factor * getattr(network, rate)})
    sent = {"num_nodes": num_nodes, "bytes_out": bytes_out, "bytes_in": bytes_in}
    assert faster.transfer_seconds(**sent) <= network.transfer_seconds(**sent)
    assert network.scaled(factor).transfer_seconds(**sent) <= faster.transfer_seconds(**sent)


@given(networks, st.integers(1, 1000), sizes, sizes, st.floats(0, 100), st.integers(0, 10**9))
def test_more_latency_and_more_bytes_are_never_faster(
    network: Network, num_nodes: int, bytes_out: int, bytes_in: int, latency: float, more: int
) -> None:
    def seconds(network: Network, out: int, back: int) -> float:
        return network.transfer_seconds(num_nodes=num_nodes, bytes_out=out, bytes_in=back)

    before = seconds(network, bytes_out, bytes_in)
    assert seconds(replace(network, latency=network.latency + latency), bytes_out, bytes_in) >= before
    assert seconds(network, bytes_out + more, bytes_in) >= before
    assert seconds(network, bytes_out, bytes_in + more) >= before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({rate: 0.0}, f"{rate} must be a positive number of bit/s; got {rate}=0.0") for rate in RATES),
        ({"node_upload": float("nan")}, "node_upload=nan"),
        ({"latency": -0.1}, "latency must be a number >= 0; got latency=-0.1"),
        ({"deadline": float("inf")}, "deadline=inf"),
    ],
)
def test_impossible_networks_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        replace(NETWORK, **changes)


def test_impossible_rounds_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="num_nodes=0"):
        NETWORK.transfer_seconds(num_nodes=0, bytes_out=1, bytes_in=1)
    with pytest.raises(ConfigurationError, match="bytes_in=-1"):
        NETWORK.transfer_seconds(num_nodes=1, bytes_out=1, bytes_in=-1)
    with pytest.raises(ConfigurationError, match="batch_seconds=-1"):
        round_seconds(
            NETWORK,
            num_nodes=1,
            batches_per_node=1,
            batch_seconds=-1,
            bytes_out=1,
            bytes_in=1,
            server_seconds=0,
            waited=False,
        )


def test_presets_carry_their_names() -> None:
    assert list(NETWORKS) == ["cluster-1g", "cluster-10g", "wan-100m", "home-20m"]
    assert all(network.name == name for name, network in NETWORKS.items())


@pytest.mark.parametrize(
    ("downlink", "rounds", "sent"),
    [("full", 1.0, 1000), ("full", 30.0, 1000), ("delta", 1.0, 90), ("delta", 2.505, 226), ("delta", 30.0, 1000)],
)
def test_what_a_node_is_sent(downlink: DownlinkName, rounds: float, sent: int) -> None:
    assert DELTA_BYTES == 0.09, "of the model's bytes"
    assert bytes_to_node(downlink, 1000, rounds) == sent


def test_less_than_nothing_is_not_sent() -> None:
    with pytest.raises(ConfigurationError, match="model_bytes=-1"):
        bytes_to_node("full", -1)
    with pytest.raises(ConfigurationError, match="rounds=-1"):
        bytes_to_node("delta", 1000, -1)
