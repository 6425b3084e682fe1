"""Every collective against what it means, for equal and unequal shares, and what happens when a peer misbehaves."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.comm.connect import connect, listen
from testbed.comm.frame import pack_header
from testbed.comm.group import Handle, even_shares
from testbed.comm.pacing import LATE_S, BurstCredit, TransportPacing, Unpaced, wire_bytes
from testbed.comm.routes import RankLinks
from testbed.comm.tcp import TcpGroup
from testbed.errors import CommError
from tests.conftest import best_gather_s, check_all_gather, run_ranks

WORLDS = (1, 2, 3, 4, 5)


def shares(total: int, world: int, even: bool) -> list[int]:
    return even_shares(total, world) if even else [total - world + 1] + [1] * (world - 1)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("even", [True, False])
def test_all_gather_concatenates_in_rank_order(world: int, even: bool) -> None:
    check_all_gather(torch.randn(11, 7), shares(11, world, even))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("size", [1, 5, 1000, 70_001])
def test_all_reduce_sums_and_is_equal_everywhere(world: int, size: int) -> None:
    parts = [torch.randn(size) for _ in range(world)]

    def main(group: TcpGroup) -> tuple[torch.Tensor, bool]:
        mine = parts[group.rank].clone()
        total = group.all_reduce(mine)
        return total, torch.equal(mine, parts[group.rank])

    results = run_ranks(world, main)
    for total, unchanged in results:
        assert unchanged
        assert torch.equal(total, results[0][0])
        torch.testing.assert_close(total, torch.stack(parts).sum(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("world", WORLDS)
def test_reduce_scatter_gives_each_rank_its_rows(world: int) -> None:
    rows = shares(9, world, False)
    parts = [torch.randn(9, 3) for _ in range(world)]
    results = run_ranks(world, lambda group: group.reduce_scatter(parts[group.rank], rows))
    torch.testing.assert_close(torch.cat(results), torch.stack(parts).sum(0))


@pytest.mark.parametrize("world", WORLDS)
def test_all_to_all_transposes(world: int) -> None:
    def main(group: TcpGroup) -> torch.Tensor:
        rows = [1 + peer for peer in range(world)]
        mine = torch.cat([torch.full((rows[p], 2), 10 * group.rank + p) for p in range(world)])
        return group.all_to_all(mine, rows, [1 + group.rank] * world)

    for rank, got in enumerate(run_ranks(world, main)):
        assert torch.equal(got, torch.cat([torch.full((1 + rank, 2), 10 * source + rank) for source in range(world)]))


def test_send_and_recv_along_a_chain_and_count_bytes() -> None:
    def main(group: TcpGroup) -> tuple[float, int, int]:
        value = torch.ones(1000)
        if group.rank > 0:
            value = group.recv([1000], torch.float32, group.rank - 1) * 2
        if group.rank < 2:
            group.send(value, group.rank + 1)
        return value.sum().item(), group.traffic.received_bytes, group.traffic.sent_bytes

    assert run_ranks(3, main) == [(1000.0, 0, 4000), (2000.0, 4000, 4000), (4000.0, 4000, 0)]


def test_async_gather_overlaps_and_later_operations_keep_their_order() -> None:
    def main(group: TcpGroup) -> bool:
        handle = group.all_gather_async(torch.full((2,), group.rank), [2, 2])
        total = group.all_reduce(torch.ones(3))
        return torch.equal(handle.wait(), torch.tensor([0, 0, 1, 1])) and torch.equal(total, torch.full((3,), 2.0))

    assert all(run_ranks(2, main))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_async_exchange_goes_both_ways_round(world: int) -> None:
    def main(group: TcpGroup) -> tuple[list[int], int]:
        right, left = (group.rank + 1) % world, (group.rank - 1) % world
        own = torch.full((3 + group.rank,), group.rank, dtype=torch.uint8)
        received = {left: 3 + left, right: 3 + right}
        got = group.exchange_async(dict.fromkeys((right, left), own), received).wait()
        return got.tolist(), group.traffic.received_bytes

    for rank, (got, counted) in enumerate(run_ranks(world, main)):
        neighbors = list(dict.fromkeys([(rank - 1) % world, (rank + 1) % world]))
        assert got == [peer for peer in neighbors for _ in range(3 + peer)]
        assert counted == len(got)


def test_async_exchange_overlaps_and_may_send_nothing() -> None:
    def main(group: TcpGroup) -> tuple[int, float]:
        group.barrier()
        sends, received = ({1: torch.zeros(5, dtype=torch.uint8)}, {}) if group.rank == 0 else ({}, {0: 5})
        if group.rank == 0:
            time.sleep(0.1)
        handle = group.exchange_async(sends, received)
        time.sleep(0.2 if group.rank else 0.0)  # it comes meanwhile, so nothing is waited for
        return len(handle.wait()), group.traffic.wait_s + group.traffic.wire_s

    (nothing, _), (five, blocked_s) = run_ranks(2, main)
    assert (nothing, five) == (0, 5)
    assert blocked_s < 0.05


def test_a_queued_operation_does_not_wait_for_the_one_in_progress() -> None:
    received = threading.Event()

    def main(group: TcpGroup) -> int:
        nothing, message = {}, torch.zeros(5, dtype=torch.uint8)
        if group.rank == 0:
            handles = [group.exchange_async(nothing, {2: 5}), group.exchange_async({1: message}, nothing)]
            return sum(len(handle.wait()) for handle in handles)
        if group.rank == 1:
            group.exchange_async(nothing, {0: 5}).wait()
            received.set()
        else:  # rank 0's first operation is not over before its second one is
            assert received.wait(10)
            group.exchange_async({0: message}, nothing).wait()
        return 5

    assert run_ranks(3, main) == [5, 5, 5]


@given(data=st.data())
@settings(max_examples=30)
def test_any_mix_of_operations_in_progress_arrives_in_order(data: st.DataObject) -> None:
    world = data.draw(st.integers(2, 4))
    kinds = st.sampled_from(["small", "large", "sum", "neighbor", "wait", "barrier"])
    program = data.draw(st.lists(kinds, min_size=1, max_size=8))
    pauses = data.draw(st.lists(st.sampled_from([0.0, 0.002]), min_size=world, max_size=world))

    def main(group: TcpGroup) -> None:
        group.set_links(RankLinks.one(group.rank, world, Unpaced(), 100e6))  # so that the large ones go in rounds
        in_progress: list[tuple[Handle, torch.Tensor]] = []
        for step, kind in enumerate(program):
            time.sleep(pauses[group.rank])
            size = 100_000 if kind == "large" else 3
            values = [torch.full((size,), 10 * step + rank) for rank in range(world)]
            own, left = values[group.rank], (group.rank - 1) % world
            if kind in ("small", "large"):
                in_progress.append((group.all_gather_async(own, [size] * world), torch.cat(values)))
            elif kind == "sum":
                in_progress.append((group.share_sum_async(own), torch.stack(values).sum(0)))
            elif kind == "neighbor":
                sends = {(group.rank + 1) % world: own.view(torch.uint8)}
                in_progress.append((group.exchange_async(sends, {left: 8 * size}), values[left].view(torch.uint8)))
            elif kind == "barrier":
                group.barrier()
            elif in_progress:
                handle, expected = in_progress.pop(0)
                assert torch.equal(handle.wait(), expected)
        for handle, expected in in_progress:
            assert torch.equal(handle.wait(), expected)

    run_ranks(world, main)


def test_time_waiting_for_a_late_peer_is_wait_not_wire() -> None:
    def main(group: TcpGroup) -> tuple[float, float]:
        group.barrier()
        if group.rank == 1:
            time.sleep(0.2)
        group.all_gather(torch.zeros(10), [10, 10])
        return group.traffic.wait_s, group.traffic.wire_s

    (wait, wire), _ = run_ranks(2, main)
    assert wait > 0.15 and wire < 0.1


def test_missing_peer_is_named_within_the_timeout() -> None:
    def main(group: TcpGroup) -> str:
        if group.rank == 2:
            time.sleep(1.0)
            return ""
        group._wire.timeout_s = 0.3
        with pytest.raises(CommError, match=r"in all_gather for ranks \[2\]") as error:
            group.all_gather(torch.zeros(4), [4, 4, 4])
        assert error.value.ranks == (2,)
        return "named"

    assert run_ranks(3, main)[:2] == ["named", "named"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\xff" * 24, "rank 1 sent a corrupt frame"),
        (pack_header("all_gather", 1, 0, 2**62), "of 4611686018427387904 bytes"),
        (pack_header("all_reduce", 1, 0, 16), "sent all_reduce"),
        (pack_header("all_gather", 1, 7, 16), "sent all_gather #7"),
        (b"", "rank 1 closed its connection"),
    ],
)
def test_bad_frames_name_the_peer(raw: bytes, message: str) -> None:
    ours, theirs = socket.socketpair()
    outwards, reader = socket.socketpair()
    group = TcpGroup(0, 2, {1: outwards}, {1: ours}, timeout_s=2)
    theirs.sendall(raw)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(CommError, match=message) as error:
        group.all_gather(torch.zeros(4), [4, 4])
    assert error.value.ranks == (1,)
    reader.close()


def test_missing_ranks_at_connection() -> None:
    silent = listen("127.0.0.1")
    with pytest.raises(CommError, match=r"for ranks \[1, 2\] to join"):
        connect(0, [("127.0.0.1", 1)] + [silent.getsockname()] * 2, listen("127.0.0.1"), b"t" * 16, 0.2)
    silent_address = silent.getsockname()
    silent.close()
    with pytest.raises(CommError, match="rank 1 at .* does not answer"):
        connect(0, [("127.0.0.1", 1), silent_address], listen("127.0.0.1"), b"t" * 16, 0.2)


def test_transport_pacing_takes_the_time_of_the_link() -> None:
    rate = 50e6

    def main(group: TcpGroup) -> float:
        group.set_links(RankLinks.one(group.rank, 3, TransportPacing(rate), rate))
        return best_gather_s(group, 100_000)

    ideal = 8 * wire_bytes(200_000) / rate
    assert all(ideal * 0.98 <= seconds < ideal * 2 for seconds in run_ranks(3, main))


def test_burst_credit_is_charged_once() -> None:
    pacing = BurstCredit(10e6, 1600)
    assert pacing.release(320, 100.0, 100.0) - 100.0 == pytest.approx(
        8 * 386 / 10e6
    )  # smaller than the bucket: all of it
    busy = BurstCredit(10e6, 1600)
    assert busy.release(100_000, 0.5, 0.5) - 0.5 == pytest.approx(8 * 1600 / 10e6)  # larger: one bucket
    assert busy.release(100_000, 0.51, 0.5) == 0.51  # the link is still busy: there is no credit
    assert busy.release(100_000, 5.0, 5.0) > 5.0


@given(st.lists(st.tuples(st.integers(1, 1400), st.floats(0, 0.9 * LATE_S)), min_size=1, max_size=20), st.booleans())
def test_a_sender_that_wakes_up_late_neither_loses_nor_gains_link_time(
    messages: list[tuple[int, float]], kernel: bool
) -> None:
    pacing, ready_s = BurstCredit(10e6, 1600) if kernel else TransportPacing(10e6), 7.0
    now_s = ideal_s = ready_s
    for size, late_s in messages:
        release_s = pacing.release(size, now_s, ready_s)
        ideal_s += 8 * wire_bytes(size) / 10e6
        assert release_s == pytest.approx(max(ideal_s, now_s) if kernel else ideal_s)
        now_s = max(now_s, ideal_s + late_s)


def test_a_sender_that_is_much_too_late_loses_link_time() -> None:
    for pacing in (BurstCredit(10e6, 1600), TransportPacing(10e6)):
        first_s = pacing.release(1000, 7.0, 7.0)
        assert pacing.release(1000, first_s + 1.0, 7.0) >= first_s + 1.0 - LATE_S


def test_no_thread_is_left_behind() -> None:
    run_ranks(3, lambda group: group.all_gather_async(torch.zeros(1), [1, 1, 1]).wait())
    time.sleep(0.1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("comm")]
