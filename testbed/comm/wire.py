"""The cost model's link: bits over a rate, as in papers, or also the overheads of real messages."""

from __future__ import annotations

from dataclasses import dataclass

from testbed.comm.frame import HEADER_BYTES
from testbed.comm.pacing import PAYLOAD_SHARE, wire_bytes

# A message that the link carries in this time, on the emulated devices' clock, goes without rounds: a rank that runs
# ahead then occupies others' links only briefly. Four devices that gather 10 KB each at 10 Mbps (8 ms) take 1.07 times
# the ideal without rounds and 1.08 with rounds.
BRIEF_S = 10e-3


@dataclass(frozen=True)
class Wire:
    """The link of every device, and what the hosts add to a message.

    packets: whether packets and messages have headers. exchange_s: seconds that both hosts add to each message, which
    delay the receiver and keep no link busy. staging_bytes_per_s: rate of the copies between device and host memory.
    """

    bits_per_s: float
    packets: bool = False
    exchange_s: float = 0.0
    staging_bytes_per_s: float = float("inf")

    def bulk_s(self, bits: float) -> float:
        """Seconds for bits that fill their packets."""
        return bits / (self.bits_per_s * (PAYLOAD_SHARE if self.packets else 1.0)) + self._staged_s(bits / 8)

    def message_s(self, payload_bytes: int) -> float:
        """Seconds for one message of any length."""
        size = wire_bytes(HEADER_BYTES + payload_bytes) if self.packets else payload_bytes
        return 8 * size / self.bits_per_s + self._staged_s(payload_bytes)

    def rounds(self, message_bytes: float, world: int) -> int:
        """Messages that a device awaits one after another where every device sends one to every other device.

        Brief messages go to all at the same time, longer ones in rounds (testbed.comm.tcp).
        """
        return min(1, world - 1) if is_brief(message_bytes, self.bits_per_s) else world - 1

    def _staged_s(self, payload_bytes: float) -> float:
        return 2 * payload_bytes / self.staging_bytes_per_s


def is_brief(payload_bytes: float, bits_per_s: float) -> bool:
    """Whether a link of the emulated devices carries this message so quickly that it needs no rounds."""
    return 8 * payload_bytes <= BRIEF_S * bits_per_s
