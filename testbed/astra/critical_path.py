"""How long a pass of ASTRA takes by the cost model: the slots of all ranks and the messages between them, side by side.

Each rank runs its slots one after another, and its messages follow each other on its link. It waits for what it needs:
without ``overlap`` for all codes before it goes on, else for a piece's codes before it expands that piece.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from testbed.astra.costs import Costs, Slot
from testbed.comm.wire import Wire
from testbed.device.spec import Device


def critical_path_s(ranks: Sequence[Costs], devices: Sequence[Device], wire: Wire) -> float:
    """Seconds from the common start to the last rank's end. ranks, devices: each rank's costs and speed."""

    def seconds(slots: Sequence[Slot]) -> np.ndarray:
        return np.array([slot.seconds(device) for slot, device in zip(slots, devices, strict=True)])

    split, overlap = ranks[0].split, ranks[0].speedups.overlap
    exchange_s = wire.exchange_s if split.world > 1 else 0.0
    pieces = range(split.pieces)
    spans = [[costs.split.piece_rows[piece] for costs in ranks] for piece in pieces]
    finish_s = [seconds([c.finish(end - first) for c, (first, end) in zip(ranks, of, strict=True)]) for of in spans]
    encode_s = [seconds([costs.encode(piece) for costs in ranks]) for piece in pieces]
    expand_s = [seconds([costs.expand(piece) for costs in ranks]) for piece in pieces]
    attend_s = [seconds([costs.attend(piece) for costs in ranks]) for piece in pieces]
    local_s = seconds([costs.local() for costs in ranks])
    message_s = [np.array([wire.message_s(size) for size in ranks[0].message_bytes(piece)]) for piece in pieces]
    now, link = seconds([costs.embed() for costs in ranks]), np.zeros(split.world)
    for layer in range(split.shape.layers):
        arrivals = []
        for piece in pieces:
            now = now + (finish_s[piece] if layer else 0) + encode_s[piece]
            link = _gathered(now, link, message_s[piece])
            arrivals.append(link + exchange_s)
        now = (now if overlap else np.maximum(now, arrivals[-1])) + local_s
        for piece, arrival in enumerate(arrivals):
            now = np.maximum(now, arrival) + expand_s[piece] + attend_s[piece]
    copies = split.shape.class_tokens
    now = now + seconds([costs.finish(copies) for costs in ranks])
    tokens_s = seconds([costs.finish(costs.split.rows - copies) for costs in ranks])
    sums_s = np.array([wire.bulk_s(costs.class_bits()) for costs in ranks]) + 2 * exchange_s
    summed = now.max() + sums_s if copies else now
    now = np.maximum(now + tokens_s, summed) if overlap else summed + tokens_s
    return float((now + seconds([costs.head() for costs in ranks])).max())


def _gathered(ready: np.ndarray, link: np.ndarray, message_s: np.ndarray) -> np.ndarray:
    """When each rank has everybody's message and has sent its own to all.

    ready: when its own message is there; link: when its link is free; message_s: its message's time on a link. Messages
    come in the order in which they are sent.
    """
    begin, ends, ranks = np.maximum(ready, link), link, np.arange(len(link))
    for sender in np.argsort(begin, kind="stable"):
        ends = np.where(ranks == sender, ends, np.maximum(ends, begin[sender]) + message_s[sender])
    return np.maximum(ends, begin + (len(ranks) - 1) * message_s)
