"""Run by a test: four ranks gather over real links, one of them late; when does rank 0 have it all?

The ranks are threads, each in the network namespace of its host. The late rank is the one that sends to rank 0 first.
It is late by a message, so its message meets the next one at rank 0's port, whose bucket is full.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

import torch

from testbed.comm.connect import connect, listen
from testbed.comm.frame import HEADER_BYTES
from testbed.comm.pacing import wire_bytes
from testbed.device.priority import realtime
from testbed.network.mininet import MininetNetwork
from testbed.network.qdisc import network_of
from testbed.network.sandbox import inside, supervise
from topologies.link_graph import star

RANKS, MBPS, SENT_BYTES, REPEATS = 4, 10.0, 10_000, 15
MESSAGE_S = wire_bytes(HEADER_BYTES + SENT_BYTES) * 8 / (1e6 * MBPS)


def main() -> int:
    """Print in ms how long rank 0's link needs for all messages, and how long after the first one it had them all."""
    if not inside():
        return supervise([], "mininet", module="tests.emulation.incast_drill")
    begins = [[0.0] * RANKS for _ in range(REPEATS)]
    ends, faults = [0.0] * REPEATS, []
    with MininetNetwork(star(RANKS)) as network:
        network.shape(1e6 * MBPS, "tbf")
        listeners = []
        for rank in range(RANKS):
            with network_of(network.host_pid(rank)):
                listeners.append(listen(network.device_data_ips[rank]))
        addresses, token = [each.getsockname() for each in listeners], os.urandom(16)
        together = threading.Barrier(RANKS)

        def run(rank: int) -> None:
            with network_of(network.host_pid(rank)):
                group = connect(rank, addresses, listeners[rank], token)
            group.set_links(network.links_of(rank, "pairwise"))
            message = torch.zeros(SENT_BYTES, dtype=torch.uint8)
            for repeat in range(REPEATS):
                group.barrier()
                time.sleep(0.1)  # every bucket is full again
                together.wait()
                if rank == RANKS - 1:
                    time.sleep(MESSAGE_S)
                begins[repeat][rank] = time.monotonic()
                group.all_gather(message, [SENT_BYTES] * RANKS)
                if rank == 0:
                    ends[repeat] = time.monotonic()
            group.barrier()
            group.close()

        def guarded(rank: int) -> None:
            try:
                run(rank)
            except BaseException as error:
                faults.append(f"rank {rank}: {error!r}")
                together.abort()

        with realtime():
            threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(RANKS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    if faults:
        print(*faults, file=sys.stderr)
        return 1
    took_s = []
    for begin, end in zip(begins, ends, strict=True):
        first_s = min(begin[rank] + MESSAGE_S * (RANKS - 1 - rank) for rank in range(1, RANKS))
        took_s.append(end - first_s)
    print(json.dumps([1e3 * (RANKS - 1) * MESSAGE_S, [1e3 * seconds for seconds in took_s]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
