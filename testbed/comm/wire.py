"""What the cost model takes a link for: bits over a rate, as papers have it, or also what messages really take."""

from __future__ import annotations

from dataclasses import dataclass

from testbed.comm.frame import HEADER_BYTES
from testbed.comm.pacing import PAYLOAD_SHARE, wire_bytes

# What an exchange takes beyond what is on the link, in hosts and on the air; here 0.3 to 1.2 ms.
EXCHANGE_S = 0.5e-3


@dataclass(frozen=True)
class Wire:
    """Every device's link.

    packets: whether packets have headers, and messages too. exchange_s: what comes on top of each exchange in which
    everybody has a message from each other device; it delays what waits for it, and keeps no link busy.
    """

    bits_per_s: float
    packets: bool = False
    exchange_s: float = 0.0

    def bulk_s(self, bits: float) -> float:
        """Seconds of bits that fill their packets."""
        return bits / (self.bits_per_s * (PAYLOAD_SHARE if self.packets else 1.0))

    def message_s(self, payload_bytes: int) -> float:
        """Seconds of one message, however short."""
        return 8 * (wire_bytes(HEADER_BYTES + payload_bytes) if self.packets else payload_bytes) / self.bits_per_s
