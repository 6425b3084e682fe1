"""Traffic counters of one rank: a Group counts, the device's clock reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Traffic:
    """Payload bytes of one rank and the seconds for which it was blocked, since the last ``reset``.

    wait_s: until the first byte of an operation arrived. wire_s: from then until its end. late_s: how much later than
    due brief messages ended while the rank was blocked. resumed_s: monotonic time at which the last operation that
    blocked the rank ended. computed_s: monotonic time at which the rank's last segment ended; 0 before the first one.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    wait_s: float = 0.0
    wire_s: float = 0.0
    late_s: float = 0.0
    resumed_s: float = 0.0
    computed_s: float = 0.0

    def block(self, begin_s: float, first_s: float, done_s: float, due_s: float = 0.0) -> None:
        """Count an operation that blocked the rank from ``begin_s`` to ``done_s``; its first byte came at ``first_s``.

        due_s: when it should have ended, where that is known, else 0.
        """
        self.wait_s += first_s - begin_s
        self.wire_s += done_s - first_s
        if due_s:
            self.late_s += max(0.0, done_s - max(due_s, begin_s))
        if done_s > begin_s:
            self.resumed_s = done_s

    def reset(self) -> None:
        """Set all counters to zero."""
        self.sent_bytes = self.received_bytes = 0
        self.wait_s = self.wire_s = self.late_s = self.resumed_s = self.computed_s = 0.0
