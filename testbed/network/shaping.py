"""The tc policy of one link end, ours and two to compare it with.

tbf     a token bucket of known size and a queue deep enough not to drop. What the bucket gives away after an idle time
        is charged by testbed.comm.pacing.CreditHold, so its size can be chosen for accuracy under load: hosts that
        share few cores are held up for a millisecond now and then, and the bucket lets the link make up for it
        (docs/decisions/0001).
tclink  what Mininet's TCLink(bw=...) sets. Its HTB lets a whole 64 KB offloaded packet through at once, so that
        messages below that cross almost free. For comparison only.
netem   ``netem rate``, which knows no bucket. Not every kernel has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from testbed.comm.pacing import CreditHold, Pacing, Unpaced

SHAPERS = ("tbf", "tclink", "netem")
BUCKET_S = 2e-3  # of the link's time
PACKET_BYTES = 1600  # one full Ethernet packet with room for encapsulation
QUEUE_BYTES = 1_000_000
QUEUE_PACKETS = 1000  # netem counts packets
TCLINK_BUCKET_BYTES = 15 * 1024


@dataclass(frozen=True)
class LinkPolicy:
    """A symmetric link. rate_bps: bits/s that the kernel lets through (already divided by time_scale)."""

    rate_bps: float
    shaper: str = SHAPERS[0]

    @property
    def bucket_bytes(self) -> int:
        """What passes at once after an idle time. tbf: two milliseconds of the link, at least one packet."""
        tbf = max(PACKET_BYTES, round(self.rate_bps / 8 * BUCKET_S))
        return {"tbf": tbf, "tclink": TCLINK_BUCKET_BYTES, "netem": 0}[self.shaper]

    def pacing(self) -> Pacing:
        """How ranks hand bytes to the link: our bucket is paid for, the others are taken as they are."""
        return CreditHold(self.rate_bps, self.bucket_bytes) if self.shaper == "tbf" else Unpaced()

    def commands(self, interface: str) -> list[str]:
        """The lines for ``tc -batch`` that put this policy on an interface, replacing an earlier one."""
        root = f"qdisc replace dev {interface} root"
        if self.shaper == "tclink":
            # Another kind of qdisc first: an HTB that is there cannot be changed.
            return [f"{root} pfifo limit {QUEUE_PACKETS}", *self._tclink(interface)]
        if self.shaper == "netem":
            return [f"{root} handle 1: netem rate {round(self.rate_bps)}bit limit {QUEUE_PACKETS}"]
        return [
            f"{root} handle 1: tbf rate {round(self.rate_bps)}bit burst {self.bucket_bytes}b limit {QUEUE_BYTES}b",
            # Packets of sockets with SO_PRIORITY 6 go first: acknowledgements, see testbed.comm.connect.
            f"qdisc replace dev {interface} parent 1: handle 10: pfifo_fast",
        ]

    def _tclink(self, interface: str) -> list[str]:
        """Mininet's own commands for this bandwidth."""
        from mininet.link import TCIntf

        commands, _ = TCIntf.bwCmds(cast(Any, TCIntf), bw=self.rate_bps / 1e6)
        return [(line % ("", interface)).strip().replace("qdisc add", "qdisc replace") for line in commands]
