"""The cost model's link: bits over a rate, as in papers, or also the overheads of real messages."""

from __future__ import annotations

from dataclasses import dataclass

from testbed.comm.frame import HEADER_BYTES
from testbed.comm.pacing import PAYLOAD_SHARE, wire_bytes

# Seconds that hosts add to an exchange beyond its time on the link; measured on emulated links: 0.3 to 1.2 ms.
EXCHANGE_S = 0.5e-3


@dataclass(frozen=True)
class Wire:
    """The link of every device.

    packets: whether packets and messages have headers. exchange_s: seconds added to each exchange in which every device
    receives a message from every other one. They delay the receivers and keep no link busy.
    """

    bits_per_s: float
    packets: bool = False
    exchange_s: float = 0.0

    def bulk_s(self, bits: float) -> float:
        """Seconds for bits that fill their packets."""
        return bits / (self.bits_per_s * (PAYLOAD_SHARE if self.packets else 1.0))

    def message_s(self, payload_bytes: int) -> float:
        """Seconds for one message of any length."""
        return 8 * (wire_bytes(HEADER_BYTES + payload_bytes) if self.packets else payload_bytes) / self.bits_per_s
