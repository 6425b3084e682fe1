"""The tc policy of one link end: a token bucket without the defaults that flatter small messages.

Mininet's TCLink is not used: it goes on after tc errors, and its HTB default lets a whole 64 KB offloaded packet
through at once, so that messages below that cross almost free. Here a ``tbf`` has a bucket of known size, and a queue
deep enough not to drop. What the bucket gives away after an idle time is charged by
testbed.comm.pacing.CreditHold, so its size can be chosen for accuracy under load: hosts that share few cores are held
up for a millisecond now and then, and the bucket lets the link make up for it (docs/decisions/0001).
"""

from __future__ import annotations

from dataclasses import dataclass

BUCKET_S = 2e-3  # of the link's time
PACKET_BYTES = 1600  # one full Ethernet packet with room for encapsulation
QUEUE_BYTES = 1_000_000


@dataclass(frozen=True)
class LinkPolicy:
    """A symmetric link. rate_bps: bits/s that the kernel lets through (already divided by time_scale)."""

    rate_bps: float

    @property
    def bucket_bytes(self) -> int:
        """The token bucket: two milliseconds of the link, at least one packet."""
        return max(PACKET_BYTES, round(self.rate_bps / 8 * BUCKET_S))

    def commands(self, interface: str) -> list[str]:
        """The lines for ``tc -batch`` that put this policy on an interface, replacing an earlier one.

        Inside the bucket, packets of sockets with SO_PRIORITY 6 go first: acknowledgements, see testbed.comm.connect.
        """
        return [
            f"qdisc replace dev {interface} root handle 1: tbf rate {round(self.rate_bps)}bit "
            f"burst {self.bucket_bytes}b limit {QUEUE_BYTES}b",
            f"qdisc replace dev {interface} parent 1: handle 10: pfifo_fast",
        ]
