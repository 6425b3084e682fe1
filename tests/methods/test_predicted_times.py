"""Predicted latencies: computation, communication, their overlap, headers, heterogeneous devices."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.comm.wire import Wire
from testbed.device.spec import Device
from testbed.methods import load_method, method_names
from testbed.methods.astra import Astra
from tests.methods.small import PAPER, U_BITS, VIT

HOMOGENEOUS = [Device(1e11)] * 4
MIXED, SPEEDS = [Device(1e11)] * 2 + [Device(5e10)] * 2, (1.0, 1.0, 0.5, 0.5)


def test_predicted_times() -> None:
    single, pipeline, sequence = (load_method(name) for name in ("single", "pipeline", "sequence"))
    wire = Wire(1e8)
    single_s = single.predicted_s(PAPER, HOMOGENEOUS, wire)
    assert single_s == single.macs(PAPER, 0, 4) / 1e11
    # Stages run one after another: a pipeline never beats one device on one request.
    hops_s = 3 * 1024 * 768 * 32 / 1e8
    assert pipeline.predicted_s(PAPER, HOMOGENEOUS, wire) == pytest.approx(single_s + hops_s)
    expected = sequence.macs(PAPER, 0, 4) / 1e11 + 12 * U_BITS / 1e8
    assert sequence.predicted_s(PAPER, HOMOGENEOUS, wire) == pytest.approx(expected)


def test_astra_without_overlap_adds_computation_and_communication() -> None:
    for groups in (1, 32):
        astra = Astra(groups)
        expected = astra.macs(PAPER, 0, 4) / 1e11 + astra.received_bits(PAPER, 4)[0] / 1e7
        assert astra.predicted_s(PAPER, HOMOGENEOUS, Wire(1e7)) == pytest.approx(expected)


def test_overlap_hides_the_overhead_of_exchanges() -> None:
    plain, late = Wire(1e8), Wire(1e8, exchange_s=1e-3)
    for name, rounds in (("sequence", 36), ("pipeline", 3), ("galaxy", 144), ("ring", 36), ("astra", 12)):
        method = load_method(name)
        assert method.rounds(PAPER, 4, plain) == rounds
        added_s = method.predicted_s(PAPER, HOMOGENEOUS, late) - method.predicted_s(PAPER, HOMOGENEOUS, plain)
        assert added_s == pytest.approx(1e-3 * rounds)
    overlapped = Astra(optimizations="lut+overlap")
    assert overlapped.predicted_s(PAPER, HOMOGENEOUS, late) == overlapped.predicted_s(PAPER, HOMOGENEOUS, plain)
    assert Astra().predicted_s(PAPER, HOMOGENEOUS[:1], late) == Astra().predicted_s(PAPER, HOMOGENEOUS[:1], plain)
    slow = Wire(1e8, exchange_s=1.0)
    assert overlapped.predicted_s(PAPER, HOMOGENEOUS, slow) > 12


def test_predictions_include_packet_headers() -> None:
    message, real = Wire(1e6), Wire(1e6, packets=True)
    assert message.message_s(320) == pytest.approx(320 * 8e-6)
    assert real.message_s(320) == pytest.approx((320 + 24 + 66) * 8e-6)
    assert real.message_s(3000) == pytest.approx((3000 + 24 + 3 * 66) * 8e-6)
    assert real.bulk_s(1448 * 8) == pytest.approx(1514 * 8e-6)
    for overlap in ("paper", "overlap"):
        astra = Astra(optimizations=overlap)
        assert astra.predicted_s(PAPER, HOMOGENEOUS, real) > astra.predicted_s(PAPER, HOMOGENEOUS, message)


@pytest.mark.parametrize(
    ("name", "equal", "by_speed"),  # latency as a multiple of that of the fastest device alone
    [("tensor", 1 / 2, 1 / 3), ("megatron_sp", 1 / 2, 1 / 3), ("galaxy", 1 / 2, 1 / 3), ("pipeline", 3 / 2, 4 / 3)],
)
def test_partition_by_speed_balances_devices(name: str, equal: float, by_speed: float) -> None:
    single_s = load_method("single").predicted_s(PAPER, MIXED[:1], Wire(1e18))
    for speeds, share in (((), equal), (SPEEDS, by_speed)):
        assert load_method(name, speeds).predicted_s(PAPER, MIXED, Wire(1e18)) == pytest.approx(share * single_s)


@pytest.mark.parametrize("bits_per_s", [1e7, 1e8, 1e12])
@pytest.mark.parametrize("speeds", [(), SPEEDS], ids=str)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in method_names() if name not in ("single", "block")),
        ("ring", {"directions": 2}),
        ("sequence", {"gather": "kv"}),
        *(("astra", {"groups": groups, "optimizations": "lut+overlap+chunks2"}) for groups in (1, 32)),
    ],
    ids=str,
)
def test_slower_devices_never_reduce_the_latency(
    name: str, settings: dict[str, Any], speeds: tuple[float, ...], bits_per_s: float
) -> None:
    method = load_method(name, speeds, **settings)
    fast, mixed, slow = (
        method.predicted_s(VIT, devices, Wire(bits_per_s)) for devices in (MIXED[:1] * 4, MIXED, MIXED[3:] * 4)
    )
    assert 0 < fast <= mixed <= slow * (1 + 1e-12)
    if not speeds and name != "pipeline":
        assert mixed > (fast + slow) / 2, "all devices wait for the slowest one"


def test_the_largest_share_of_rows_determines_the_busiest_link() -> None:
    sequence = load_method("sequence", SPEEDS)
    rows = sequence.shares(PAPER.tokens, 4)
    assert rows == [342, 342, 170, 170]
    assert sequence.wire_bits(PAPER, 4) == 12 * 3 * 342 * 768 * 32 > max(sequence.received_bits(PAPER, 4))


def test_unequal_shares_raise_the_full_precision_percentage() -> None:
    assert Astra().full_precision_pct(PAPER, 4) == 25
    assert Astra().full_precision_pct(PAPER, 1) == 100
    assert load_method("astra", SPEEDS).full_precision_pct(PAPER, 4) == pytest.approx(100 * 10 / 36, abs=0.05)
    assert load_method("sequence").full_precision_pct(PAPER, 4) is None


def test_a_star_uses_both_directions_of_the_root_link_in_turn() -> None:
    star, ring = load_method("tensor", sync="star"), load_method("tensor")
    compute_s = star.macs(PAPER, 0, 4) / 1e11
    star_s, ring_s = (method.predicted_s(PAPER, HOMOGENEOUS, Wire(1e8)) for method in (star, ring))
    assert star_s == pytest.approx(compute_s + 12 * 4 * 3 * 1024 * 768 * 32 / 1e8)
    assert star_s - compute_s == pytest.approx(4 * (ring_s - compute_s))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("galaxy", {}), ("ring", {}), ("ring", {"directions": 2})],
)
def test_overlap_costs_the_longer_of_computation_and_communication(name: str, settings: dict[str, Any]) -> None:
    method = load_method(name, **settings)
    compute_s = method.macs(PAPER, 0, 4) / 1e11
    assert method.predicted_s(PAPER, HOMOGENEOUS, Wire(1e12)) == pytest.approx(compute_s)  # all hidden
    for bits_per_s in (1e7, 1e8, 1e9):
        wire_s = method.received_bits(PAPER, 4)[0] / bits_per_s
        assert max(compute_s, wire_s) <= method.predicted_s(PAPER, HOMOGENEOUS, Wire(bits_per_s)) <= compute_s + wire_s
    slow_s = method.predicted_s(PAPER, HOMOGENEOUS, Wire(1e6))
    assert slow_s == pytest.approx(method.received_bits(PAPER, 4)[0] / 1e6, rel=0.001)  # computation is hidden instead
