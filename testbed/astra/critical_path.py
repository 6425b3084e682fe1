"""The latency of a forward pass of ASTRA by the cost model: the critical path of all ranks' segments and messages.

Each rank runs its segments one after another, and its messages follow each other on its link. Without ``overlap`` a
rank waits for all codes of a layer before it continues. With ``overlap`` it waits for a chunk's codes before it expands
that chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from testbed.astra.costs import Costs
from testbed.comm.wire import Wire
from testbed.device.spec import Device
from testbed.work import Work


def critical_path_s(ranks: Sequence[Costs], devices: Sequence[Device], wire: Wire) -> float:
    """Seconds from the common start to the end of the last rank. ranks, devices: costs and device of each rank."""

    def seconds(segments: Sequence[Work]) -> np.ndarray:
        return np.array([device.seconds(segment) for segment, device in zip(segments, devices, strict=True)])

    split, overlap = ranks[0].split, ranks[0].optimizations.overlap
    exchange_s = wire.exchange_s if split.world > 1 else 0.0
    chunks = range(split.chunks)
    spans = [[costs.split.chunk_rows[chunk] for costs in ranks] for chunk in chunks]
    finish_s = [seconds([c.finish(end - first) for c, (first, end) in zip(ranks, of, strict=True)]) for of in spans]
    mix_s = seconds([costs.mix() for costs in ranks])
    encode_s = [seconds([costs.encode(chunk) for costs in ranks]) for chunk in chunks]
    expand_s = [seconds([costs.expand(chunk) for costs in ranks]) for chunk in chunks]
    attend_s = [seconds([costs.attend(chunk) for costs in ranks]) for chunk in chunks]
    local_s = seconds([costs.local() for costs in ranks])
    message_s = [np.array([wire.message_s(size) for size in ranks[0].message_bytes(chunk)]) for chunk in chunks]
    now, link = seconds([costs.embed() for costs in ranks]), np.zeros(split.world)
    for layer in range(split.shape.layers):
        arrivals = []
        for chunk in chunks:
            now = now + (finish_s[chunk] if layer else 0) + (encode_s[chunk] if split.world > 1 else 0)
            link = _gathered(now, link, message_s[chunk])
            arrivals.append(link + exchange_s)
        now = (now if overlap else np.maximum(now, arrivals[-1])) + local_s
        for chunk, arrival in enumerate(arrivals):
            has_sources = np.array([bool(costs.split.sources) for costs in ranks])
            now = np.maximum(now, arrival) + has_sources * (expand_s[chunk] + attend_s[chunk])
        now = now + mix_s
    copies = split.shape.class_tokens
    now = now + seconds([costs.finish(copies) for costs in ranks])
    tokens_s = seconds([costs.finish(costs.split.rows - copies) + costs.final_norm() for costs in ranks])
    sums_s = np.array([wire.bulk_s(costs.class_bits()) for costs in ranks]) + 2 * exchange_s
    summed = now.max() + sums_s if copies else now
    now = np.maximum(now + tokens_s, summed) if overlap else summed + tokens_s
    return float((now + seconds([costs.head() for costs in ranks])).max())


def _gathered(ready: np.ndarray, link: np.ndarray, message_s: np.ndarray) -> np.ndarray:
    """When each rank has received the messages of all others and has sent its own to all of them.

    ready: when each rank's message is packed. link: when its link is free. message_s: the time of its message on a
    link. Messages arrive in the order in which they are sent.
    """
    begin, ends, ranks = np.maximum(ready, link), link, np.arange(len(link))
    for sender in np.argsort(begin, kind="stable"):
        ends = np.where(ranks == sender, ends, np.maximum(ends, begin[sender]) + message_s[sender])
    return np.maximum(ends, begin + (len(ranks) - 1) * message_s)
