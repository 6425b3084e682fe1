"""Traffic counters of one rank: a Group counts, the device's clock reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Traffic:
    """Payload bytes of one rank and the seconds for which it was blocked, since the last ``reset``.

    wait_s: until the first byte of an operation arrived. wire_s: from then until its end.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    wait_s: float = 0.0
    wire_s: float = 0.0

    @property
    def blocked_s(self) -> float:
        """All blocked time: waiting for peers and for the wire."""
        return self.wait_s + self.wire_s

    def reset(self) -> None:
        """Set all counters to zero."""
        self.sent_bytes = self.received_bytes = 0
        self.wait_s = self.wire_s = 0.0
