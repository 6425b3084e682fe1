"""The tc policy of one link end, ours and two to compare it with.

tbf     a token bucket of known size and a queue deep enough not to drop. What the bucket gives away after an idle time
        is charged by testbed.comm.pacing.CreditHold, so its size can be chosen for accuracy under load: hosts that
        share few cores are held up for some milliseconds now and then, and the bucket lets the link make up for it
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
BUCKET_S = 5e-3  # of the link's time
BUCKET_SHARE = 4  # of its queue a bucket is at most one in so many: it would stand for a queue of its size
PACKET_BYTES = 1600  # one full Ethernet packet with space for encapsulation
GSO_BYTES = 65_536  # the most that the kernel bundles
QUEUE_KB = 1000.0  # of a switch's port, unless an experiment asks for another length
HOST_PACKETS = 1000  # of a host's own queue, which its sockets' buffers bound much earlier
TCLINK_BUCKET_BYTES = 15 * 1024


@dataclass(frozen=True)
class LinkPolicy:
    """One direction of a link. rate_bps: bits/s that the kernel lets through (already divided by time_scale).

    queue_kb: what waits at a switch's port at most, in thousands of bytes; what comes then is dropped.
    """

    rate_bps: float
    shaper: str = SHAPERS[0]
    queue_kb: float = QUEUE_KB

    @property
    def queue_bytes(self) -> int:
        """The queue in bytes."""
        return round(1000 * self.queue_kb)

    @property
    def bucket_bytes(self) -> int:
        """What passes at once after an idle time.

        tbf: five milliseconds of the link, a part of its queue at most, a packet at least.
        """
        share = min(self.rate_bps / 8 * BUCKET_S, self.queue_bytes / BUCKET_SHARE)
        return {"tbf": max(PACKET_BYTES, round(share)), "tclink": TCLINK_BUCKET_BYTES, "netem": 0}[self.shaper]

    @property
    def bundle_packets(self) -> int:
        """How many packets a socket may hand over as one.

        tbf: half a bucket of them. It would cut a larger bundle into packets again, each with a timer and a turn at
        every queue on its way, which took more of a core than there was (docs/decisions/0007). The other half is for
        timers that come late. The others take what the kernel can bundle, as they are.
        """
        limit = min(self.bucket_bytes // 2, GSO_BYTES) if self.shaper == "tbf" else GSO_BYTES
        return max(1, limit // PACKET_BYTES)

    def pacing(self) -> Pacing:
        """How ranks hand bytes to the link: our bucket is paid for, the others are taken as they are."""
        return CreditHold(self.rate_bps, self.bucket_bytes) if self.shaper == "tbf" else Unpaced()

    def commands(self, interface: str, host: bool) -> list[str]:
        """The lines for ``tc -batch`` that put this policy on an interface, replacing an earlier one.

        host: whether it is a host's end, where sockets set priorities. A switch's port knows none: packets that cross
        from one namespace to another lose theirs.
        """
        root = f"qdisc replace dev {interface} root"
        if self.shaper == "tclink":
            # Another kind of qdisc first: an HTB that is there cannot be changed.
            return [f"{root} pfifo limit {HOST_PACKETS}", *self._tclink(interface)]
        if self.shaper == "netem":
            packets = HOST_PACKETS if host else max(1, self.queue_bytes // PACKET_BYTES)
            return [f"{root} handle 1: netem rate {round(self.rate_bps)}bit limit {packets}"]
        lines = [
            f"{root} handle 1: tbf rate {round(self.rate_bps)}bit burst {self.bucket_bytes}b limit {self.queue_bytes}b"
        ]
        if host:
            # Packets of sockets with IP_TOS low delay go first: acknowledgements, see testbed.comm.connect. The queue
            # is then pfifo_fast's, of the interface's length in packets, and tbf's limit is void.
            lines.append(f"qdisc replace dev {interface} parent 1: handle 10: pfifo_fast")
        return lines

    def _tclink(self, interface: str) -> list[str]:
        """Mininet's own commands for this bandwidth."""
        from mininet.link import TCIntf

        commands, _ = TCIntf.bwCmds(cast(Any, TCIntf), bw=self.rate_bps / 1e6)
        return [(line % ("", interface)).strip().replace("qdisc add", "qdisc replace") for line in commands]
