"""All-gather schedules: properties of the data, and equal results and received bytes over real TCP."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from testbed.comm.pacing import TransportPacing, Unpaced, wire_bytes
from testbed.comm.routes import RankLinks, Route
from testbed.comm.schedule import ALL_GATHERS, DIRECT, HIERARCHICAL, PAIRWISE, RING, WHOLE, Subnets, all_gather
from testbed.comm.tcp import TcpGroup
from tests.conftest import best_gather_s, check_all_gather, run_ranks


@st.composite
def any_subnets(draw: st.DrawFn) -> Subnets:
    """Any partition of the ranks into subnets."""
    ranks = draw(st.permutations(range(draw(st.integers(1, 9)))))
    cuts = sorted(draw(st.sets(st.integers(1, len(ranks) - 1))) if len(ranks) > 1 else [])
    ends = [0, *cuts, len(ranks)]
    return tuple(tuple(ranks[a:b]) for a, b in zip(ends, ends[1:], strict=False))


@given(st.sampled_from(ALL_GATHERS), any_subnets())
def test_each_rank_gets_each_other_block_once_from_a_rank_that_has_it(algorithm: str, subnets: Subnets) -> None:
    world = sum(map(len, subnets))
    held = {(rank, rank, WHOLE) for rank in range(world)}
    got: dict[tuple[int, int], float] = defaultdict(float)
    for stage in all_gather(algorithm, world, subnets):
        pairs = [(transfer.source, transfer.target) for transfer in stage]
        assert len(pairs) == len(set(pairs)) and all(source != target for source, target in pairs)
        for transfer in stage:
            assert {(transfer.source, transfer.owner, part) for part in (WHOLE, transfer.part)} & held
            got[transfer.target, transfer.owner] += transfer.share
        held |= {(transfer.target, transfer.owner, transfer.part) for transfer in stage}
    assert got == {(rank, owner): 1 for rank in range(world) for owner in range(world) if rank != owner}


@pytest.mark.parametrize("world", range(2, 10))
def test_a_ring_uses_neighbors_only_and_both_ways_alike(world: int) -> None:
    stages = all_gather(RING, world)
    assert len(stages) == world // 2
    carried: dict[tuple[int, int], float] = defaultdict(float)
    for transfer in (transfer for stage in stages for transfer in stage):
        assert (transfer.target - transfer.source) % world in (1, world - 1)
        carried[transfer.source, transfer.target] += transfer.share
    assert set(carried.values()) == ({1.0} if world == 2 else {(world - 1) / 2})


@given(any_subnets())
def test_a_block_enters_another_subnet_once(subnets: Subnets) -> None:
    subnet_of = {rank: subnet for subnet in subnets for rank in subnet}
    entered = Counter(
        (transfer.owner, subnet_of[transfer.target])
        for stage in all_gather(HIERARCHICAL, len(subnet_of), subnets)
        for transfer in stage
        if subnet_of[transfer.source] != subnet_of[transfer.target]
    )
    assert entered == {(rank, subnet): 1 for rank in subnet_of for subnet in subnets if rank not in subnet}


def two_subnets(world: int) -> Subnets:
    return tuple(filter(None, (tuple(range((world + 1) // 2)), tuple(range((world + 1) // 2, world)))))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("algorithm", ALL_GATHERS)
@pytest.mark.parametrize("rate_bps", [float("inf"), 1e6])  # on fast links, small messages go without rounds
def test_all_algorithms_gather_the_same_and_receive_the_same(algorithm: str, world: int, rate_bps: float) -> None:
    rows = [3, 1, 0, 5, 2][:world]

    def links(rank: int) -> RankLinks:
        route = Route(Unpaced(), rate_bps)
        peers = [peer for peer in range(world) if peer != rank]
        return RankLinks(dict.fromkeys(peers, route), rate_bps, algorithm, two_subnets(world))

    check_all_gather(torch.randn(sum(rows), 601), rows, links)


@pytest.mark.parametrize("algorithm", [PAIRWISE, DIRECT])
def test_other_collectives_have_the_same_result(algorithm: str) -> None:
    parts = [torch.randn(9, 1000) for _ in range(4)]

    def main(group: TcpGroup) -> tuple[torch.Tensor, torch.Tensor]:
        group.set_links(RankLinks.one(group.rank, 4, Unpaced(), 1e6, algorithm))
        total = group.reduce_scatter(parts[group.rank], [3, 3, 2, 1])
        return total, group.all_to_all(parts[group.rank][:8], [2] * 4, [2] * 4)

    results = run_ranks(4, main)
    torch.testing.assert_close(torch.cat([total for total, _ in results]), torch.stack(parts).sum(0))
    for rank, (_, swapped) in enumerate(results):
        assert torch.equal(swapped, torch.cat([part[2 * rank : 2 * rank + 2] for part in parts]))


class Recorder(Unpaced):
    """Records the bytes that it is asked to release."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def release(self, payload_bytes: int, now_s: float, ready_s: float) -> float:
        self.asked.append(payload_bytes)
        return now_s


def test_contending_senders_are_charged_together_and_a_lone_sender_once() -> None:
    def main(group: TcpGroup) -> list[int]:
        near, trunk = Recorder(), Recorder()
        routes = {peer: Route(near, 1e9) if peer // 2 == group.rank // 2 else Route(trunk, 1e9, 2) for peer in range(4)}
        group.set_links(RankLinks(routes, 1e9, DIRECT))
        group.all_gather(torch.zeros(100, dtype=torch.uint8), [100] * 4)
        assert near.asked == [124]  # with the frame's header
        if group.rank == 0:
            group.send(torch.zeros(100, dtype=torch.uint8), 2)
        elif group.rank == 2:
            group.recv([100], torch.uint8, 0)
        if group.rank < 2:  # each knows of the other
            group.exchange_async({3: torch.zeros(100, dtype=torch.uint8)}, {}, senders=2).wait()
        elif group.rank == 3:
            group.exchange_async({}, {0: 100, 1: 100}).wait()
        return trunk.asked

    both = 2 * 2 * 124  # two messages over the trunk, and the subnet's other rank has as many
    assert run_ranks(4, main) == [[both, 124, 2 * 124], [both, 2 * 124], [both], [both]]


@pytest.mark.parametrize(("shared", "messages"), [(False, 1), (True, 2)])
def test_separate_links_are_used_in_parallel(shared: bool, messages: int) -> None:
    size, rate_bps = 100_000, 2e7

    def main(group: TcpGroup) -> float:
        one = Route(TransportPacing(rate_bps), rate_bps)
        peers = [peer for peer in range(3) if peer != group.rank]
        routes = {peer: one if shared else Route(TransportPacing(rate_bps), rate_bps) for peer in peers}
        group.set_links(RankLinks(routes, rate_bps, DIRECT))
        return best_gather_s(group, size)

    ideal_s = 8 * messages * wire_bytes(size) / rate_bps
    assert all(0.98 * ideal_s <= seconds < 1.7 * ideal_s for seconds in run_ranks(3, main))
