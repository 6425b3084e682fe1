"""What a rank has moved and how long it was blocked: counted by a Group, looked at by the clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Traffic:
    """What one rank moved and how long it was blocked, since the last ``reset``."""

    sent_bytes: int = 0
    received_bytes: int = 0
    wait_s: float = 0.0
    wire_s: float = 0.0

    @property
    def blocked_s(self) -> float:
        """Both kinds of waiting together."""
        return self.wait_s + self.wire_s

    def reset(self) -> None:
        """Back to zero."""
        self.sent_bytes = self.received_bytes = 0
        self.wait_s = self.wire_s = 0.0
