"""How long devices wait for the slowest of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from testbed.cluster.worker import Pass


def straggler_wait_pct(ranks: Sequence[Pass]) -> float | None:
    """The column of that name: what the other ranks on average wait for the straggler, in percent of the latency.

    The straggler is the rank that computes longest, in segments of all kinds (compute, encode, decode), in this pass.
    While it computes longer than another rank does, that one has nothing to do but to wait for it, at once or at later
    exchanges: the difference of both, averaged over all ranks but the straggler, over the time from the common start to
    the last rank's end. What all wait for, the network, is not in it, nor what a pipeline's stages wait for each other
    beyond that difference. None for one rank.
    """
    if len(ranks) < 2:
        return None
    *others, straggler = sorted(done.compute_s + done.encode_s + done.decode_s for done in ranks)
    latency_s = max(done.end_s for done in ranks) - min(done.begin_s for done in ranks)
    return 100 * (straggler - statistics.mean(others)) / latency_s
