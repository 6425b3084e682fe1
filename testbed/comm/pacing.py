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


def fits(size: int, seconds: float, rate_bps: float) -> bool:
    """Whether a link carries ``size`` bytes in this time."""
    return 8 * size <= seconds * rate_bps


def clamped_bytes(rate_bps: float, seconds: float, limits: tuple[int, int]) -> int:
    """Bytes that a link carries in this time, within (minimum, maximum)."""
    minimum, maximum = limits
    return int(min(max(rate_bps / 8 * seconds, minimum), maximum))


def _link_begin_s(free_s: float, now_s: float, ready_s: float) -> float:
    """When a link that is free from ``free_s`` on begins with bytes that wait since ``ready_s`` and are sent now."""
    return max(ready_s, free_s, now_s - LATE_S)


class Pacing(ABC):
    """Release times for one rank's link. Times are monotonic seconds.

    out, into: when an ideal link would carry what this rank sends and receives. A message never counts as arrived
    before that, however much a token bucket on its way passes at once.
    """

    chunk_bytes: int  # the largest chunk that the kernel gets

    def __init__(self, rate_bps: float):
        self.out, self.into = Line(rate_bps), Line(rate_bps)

    @abstractmethod
    def release(self, payload_bytes: int, now_s: float, ready_s: float) -> float:
        """When the kernel may get a chunk. Called once for each chunk, in sending order.

        ready_s: when the chunk began to wait for those before it. A real link would begin with it as soon as it has
        sent those, even if the sender of this emulation wakes up late.
        """


class Line:
    """One direction of a link of ``rate_bps``, which carries messages one after another."""

    def __init__(self, rate_bps: float):
        self._bytes_per_s, self._free_s = rate_bps / 8, 0.0

    def carry(self, payload_bytes: int, ready_s: float) -> tuple[float, float]:
        """(begin, end) of a message that may begin at ``ready_s``, after the messages before it."""
        begin_s = max(ready_s, self._free_s)
        self._free_s = begin_s + wire_bytes(payload_bytes) / self._bytes_per_s
        return begin_s, self._free_s


class Unpaced(Pacing):
    """Bytes go to the kernel immediately; its link is used as it is."""

    chunk_bytes = 1 << 16

    def __init__(self, rate_bps: float = float("inf")):
        super().__init__(rate_bps)

    def release(self, payload_bytes: int, now_s: float, ready_s: float) -> float:
        return now_s


class BurstCredit(Unpaced):
    """Charges the burst credit of a kernel token bucket: a message waits for the time that its credited bytes save.

    rate_bps: bits per second of the bucket. bucket_bytes: its size.
    """

    def __init__(self, rate_bps: float, bucket_bytes: int):
        super().__init__(rate_bps)
        self.bytes_per_s, self.bucket_bytes = rate_bps / 8, bucket_bytes
        self._busy_until = 0.0

    def release(self, payload_bytes: int, now_s: float, ready_s: float) -> float:
        size = wire_bytes(payload_bytes)
        idle = now_s >= self._busy_until
        begin_s = _link_begin_s(self._busy_until, now_s, ready_s)
        self._busy_until = begin_s + size / self.bytes_per_s
        return max(now_s, begin_s + min(size, self.bucket_bytes) / self.bytes_per_s) if idle else now_s


class TransportPacing(Pacing):
    """A full-duplex link of ``rate_bps`` in user space: chunks leave at its rate, and ``into`` delays what arrives."""

    def __init__(self, rate_bps: float):
        super().__init__(rate_bps)
        self.bytes_per_s = rate_bps / 8
        # A chunk takes the link 1 ms at most, so two senders to one receiver interleave as packets would. It holds at
        # least one packet.
        self.chunk_bytes = max(SEGMENT_PAYLOAD, min(1 << 16, int(self.bytes_per_s / 1000)))
        self._out_until = 0.0

    def release(self, payload_bytes: int, now_s: float, ready_s: float) -> float:
        begin_s = _link_begin_s(self._out_until, now_s, ready_s)
        self._out_until = begin_s + wire_bytes(payload_bytes) / self.bytes_per_s
        return self._out_until
