"""The gloo transport gives the results and counts the bytes that the collectives' definitions say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from testbed.comm.gloo import GlooGroup

ROWS = [3, 1]


def collectives(group: GlooGroup) -> list[Tensor]:
    own = torch.arange(2.0 * ROWS[group.rank]).view(-1, 2) + 10 * group.rank
    total = torch.full((4, 2), group.rank + 1.0)
    message = torch.tensor([group.rank], dtype=torch.uint8)
    peer = 1 - group.rank
    group.barrier()
    return [
        group.all_gather(own, ROWS),
        group.all_gather_async(own, ROWS).wait(),
        group.all_reduce(total),
        group.share_sum_async(total).wait(),
        group.reduce_scatter(total, ROWS),
        group.all_to_all(total, ROWS, [ROWS[group.rank]] * 2),
        group.sendrecv(message, peer, [1], torch.uint8, peer),
        group.exchange_async({peer: message}, {peer: 1}).wait(),
    ]


def test_collectives_equal_their_definitions(tmp_path: Path) -> None:
    def main(rank: int) -> tuple[list[Tensor], int]:
        group = GlooGroup(rank, 2, "127.0.0.1", str(tmp_path / "store"), timeout_s=20)
        results = collectives(group)
        group.close()
        return results, group.traffic.received_bytes

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(main, range(2)))
    gathered = torch.cat([torch.arange(6.0).view(-1, 2), torch.arange(2.0).view(-1, 2) + 10])
    for rank, (results, received_bytes) in enumerate(found):
        first, later, reduced, summed, scattered, swapped, received, exchanged = results
        assert torch.equal(first, gathered) and torch.equal(later, gathered)
        assert torch.equal(reduced, torch.full((4, 2), 3.0)) and torch.equal(summed, reduced)
        assert torch.equal(scattered, torch.full((ROWS[rank], 2), 3.0))
        assert torch.equal(swapped, torch.cat([torch.full((ROWS[rank], 2), r + 1.0) for r in range(2)]))
        assert received.item() == exchanged.item() == 1 - rank
        row = 8  # bytes; gathers twice, ring and shared sum of 4 rows, scatter and exchange of the own rows, 2 messages
        assert received_bytes == row * (2 * ROWS[1 - rank] + 4 + 4 + 2 * ROWS[rank]) + 2


def test_an_address_of_no_interface_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        GlooGroup(0, 1, "192.0.2.1", str(tmp_path / "store"), timeout_s=2)
