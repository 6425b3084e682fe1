"""When the kernel may get bytes, so that small messages are not faster than on a real link.

After an idle period, a token-bucket shaper passes one bucket without delay: its burst credit. At 10 Mbps, a bucket of
1600 bytes is worth 1.3 ms, as long as a whole exchange of ASTRA's codes. ``BurstCredit`` mirrors the bucket and delays
a message by the time that its credited bytes would have taken. The last byte then arrives when a real link would
deliver it. ``TransportPacing`` emulates the whole link in user space, for machines that cannot shape links in the
kernel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

SEGMENT_PAYLOAD = 1448  # TCP payload of a full 1500-byte packet with timestamps
SEGMENT_HEADERS = 66  # Ethernet 14, IPv4 20, TCP with timestamps 32
PAYLOAD_SHARE = SEGMENT_PAYLOAD / (SEGMENT_PAYLOAD + SEGMENT_HEADERS)  # of the bytes of full packets on a link

LATE_S = 5e-3  # a sender that wakes up this late loses no link time; a kernel link's bucket holds as much


def wire_bytes(payload_bytes: int) -> int:
    """Bytes on an Ethernet link for a TCP payload, without acknowledgements."""
    return payload_bytes + SEGMENT_HEADERS * -(-payload_bytes // SEGMENT_PAYLOAD)


def _link_begin_s(free_s: float, now_s: float, ready_s: float) -> float:
    """When a link that is free from ``free_s`` on begins with bytes that wait since ``ready_s`` and are sent now."""
    return max(ready_s, free_s, now_s - LATE_S)


class Pacing(ABC):
    """Release times for one rank's link, in both directions. Times are monotonic seconds."""

    chunk_bytes: int  # the largest chunk that the kernel gets

    @abstractmethod
    def release(self, payload_bytes: int, now_s: float, ready_s: float) -> float:
        """When the kernel may get a chunk. Called once for each chunk, in sending order.

        ready_s: when the chunk began to wait for those before it. A real link would begin with it as soon as it has
        sent those, even if the sender of this emulation wakes up late.
        """

    @abstractmethod
    def arrive(self, payload_bytes: int, now_s: float) -> float:
        """When a chunk that was read at ``now_s`` counts as arrived."""


class Unpaced(Pacing):
    """Bytes go to the kernel immediately; its link is used as it is."""

    chunk_bytes = 1 << 16

    def release(self, payload_bytes: int, now_s: float, ready_s: float) -> float:
        return now_s

    def arrive(self, payload_bytes: int, now_s: float) -> float:
        return now_s


class BurstCredit(Unpaced):
    """Charges the burst credit of a kernel token bucket: a message waits for the time that its credited bytes save.

    rate_bps: bits per second of the bucket. bucket_bytes: its size.
    """

    def __init__(self, rate_bps: float, bucket_bytes: int):
        self.bytes_per_s, self.bucket_bytes = rate_bps / 8, bucket_bytes
        self._busy_until = 0.0

    def release(self, payload_bytes: int, now_s: float, ready_s: float) -> float:
        size = wire_bytes(payload_bytes)
        idle = now_s >= self._busy_until
        begin_s = _link_begin_s(self._busy_until, now_s, ready_s)
        self._busy_until = begin_s + size / self.bytes_per_s
        return max(now_s, begin_s + min(size, self.bucket_bytes) / self.bytes_per_s) if idle else now_s


class TransportPacing(Pacing):
    """A full-duplex link of ``rate_bps`` in user space: chunks leave, and count as arrived, at the link's rate."""

    def __init__(self, rate_bps: float):
        self.bytes_per_s = rate_bps / 8
        # A chunk takes the link 1 ms at most, so two senders to one receiver interleave as packets would. It holds at
        # least one packet.
        self.chunk_bytes = max(SEGMENT_PAYLOAD, min(1 << 16, int(self.bytes_per_s / 1000)))
        self._out_until = self._in_until = 0.0

    def release(self, payload_bytes: int, now_s: float, ready_s: float) -> float:
        begin_s = _link_begin_s(self._out_until, now_s, ready_s)
        self._out_until = begin_s + wire_bytes(payload_bytes) / self.bytes_per_s
        return self._out_until

    def arrive(self, payload_bytes: int, now_s: float) -> float:
        # The sender has already spent the serialization time, so only bytes of a second sender queue here.
        self._in_until = max(self._in_until + wire_bytes(payload_bytes) / self.bytes_per_s, now_s)
        return self._in_until
