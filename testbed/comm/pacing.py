"""When bytes may be handed to the kernel, so that small messages are not flattered.

A token-bucket shaper lets one bucket pass for free after each idle period. At 10 Mbps a bucket of 1600 bytes is 1.3
ms, as long as a whole exchange of ASTRA's codes. ``CreditHold`` mirrors the bucket and holds a message back for the
time that its free bytes would have taken; the last byte then arrives when a real link would deliver it.
``TransportPacing`` is the whole link in user space, for machines where no kernel shaper can be set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

SEGMENT_PAYLOAD = 1448  # TCP payload of a full 1500-byte packet with timestamps
SEGMENT_HEADERS = 66  # Ethernet 14, IPv4 20, TCP with timestamps 32
PAYLOAD_SHARE = SEGMENT_PAYLOAD / (SEGMENT_PAYLOAD + SEGMENT_HEADERS)  # of what full packets take of a link

LATE_S = 5e-3  # by which a sender may be late without its link being idle; a link of the kernel saves up no more


def wire_bytes(payload_bytes: int) -> int:
    """Bytes on an Ethernet link for a TCP payload, acknowledgements not counted."""
    return payload_bytes + SEGMENT_HEADERS * -(-payload_bytes // SEGMENT_PAYLOAD)


def _taken_up_s(free_s: float, now_s: float, ready_s: float) -> float:
    """When a link that is free from ``free_s`` on takes up what has waited since ``ready_s`` and is sent now."""
    return max(ready_s, free_s, now_s - LATE_S)


class Pacing(ABC):
    """Release times for one rank's link, both ways. Times are monotonic seconds."""

    chunk_bytes: int  # the most to hand to the kernel at once

    @abstractmethod
    def release(self, payload_bytes: int, now_s: float, ready_s: float) -> float:
        """When a chunk may be handed to the kernel. Called once a chunk, in sending order.

        ready_s: since when it has waited for those before it. A link takes it up as soon as it is done with these,
        however late the sender wakes up.
        """

    @abstractmethod
    def arrive(self, payload_bytes: int, now_s: float) -> float:
        """When a chunk that was read at ``now_s`` counts as arrived."""


class Unpaced(Pacing):
    """The kernel's link is taken as it is."""

    chunk_bytes = 1 << 16

    def release(self, payload_bytes: int, now_s: float, ready_s: float) -> float:
        return now_s

    def arrive(self, payload_bytes: int, now_s: float) -> float:
        return now_s


class CreditHold(Unpaced):
    """A kernel token bucket's free bytes are paid for by waiting before they are sent.

    rate_bps: bits per second of the bucket. bucket_bytes: its size.
    """

    def __init__(self, rate_bps: float, bucket_bytes: int):
        self.bytes_per_s, self.bucket_bytes = rate_bps / 8, bucket_bytes
        self._busy_until = 0.0

    def release(self, payload_bytes: int, now_s: float, ready_s: float) -> float:
        size = wire_bytes(payload_bytes)
        idle = now_s >= self._busy_until
        begin_s = _taken_up_s(self._busy_until, now_s, ready_s)
        self._busy_until = begin_s + size / self.bytes_per_s
        return max(now_s, begin_s + min(size, self.bucket_bytes) / self.bytes_per_s) if idle else now_s


class TransportPacing(Pacing):
    """A full-duplex link of ``rate_bps`` in user space: chunks leave, and count as arrived, at the link's pace."""

    def __init__(self, rate_bps: float):
        self.bytes_per_s = rate_bps / 8
        # A chunk is at most 1 ms of the link, so that two senders to one receiver interleave as packets would,
        # and at least a packet.
        self.chunk_bytes = max(SEGMENT_PAYLOAD, min(1 << 16, int(self.bytes_per_s / 1000)))
        self._out_until = self._in_until = 0.0

    def release(self, payload_bytes: int, now_s: float, ready_s: float) -> float:
        begin_s = _taken_up_s(self._out_until, now_s, ready_s)
        self._out_until = begin_s + wire_bytes(payload_bytes) / self.bytes_per_s
        return self._out_until

    def arrive(self, payload_bytes: int, now_s: float) -> float:
        # The sender has already spent the serialization time: only bytes of a second sender have to queue.
        self._in_until = max(self._in_until + wire_bytes(payload_bytes) / self.bytes_per_s, now_s)
        return self._in_until
