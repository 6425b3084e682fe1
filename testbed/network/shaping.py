"""The tc policy of one link end: the project's own shaper and two others for comparison.

tbf     A token bucket of known size, and a queue long enough not to drop packets. testbed.comm.pacing.BurstCredit
        charges messages for the bucket's burst credit, so the bucket size can be chosen for accuracy under load. Hosts
        that share few cores are sometimes delayed by several milliseconds, and the bucket lets the link catch up
        (docs/decisions/0001).
tclink  The commands of Mininet's TCLink(bw=...). Its HTB passes a whole 64 KB GSO segment without delay, so smaller
        messages take almost no time. For comparison only.
netem   ``netem rate``, which has no bucket. Not every kernel has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from testbed.comm.pacing import BurstCredit, Pacing, Unpaced

SHAPERS = ("tbf", "tclink", "netem")
BUCKET_S = 5e-3  # bucket size in seconds of the link
BUCKET_SHARE = 4  # a bucket is at most 1 / BUCKET_SHARE of the queue: it absorbs bursts as a queue does
PACKET_BYTES = 1600  # one full Ethernet packet with space for encapsulation
GSO_BYTES = 65_536  # the largest GSO segment of the kernel
QUEUE_KB = 1000.0  # queue of a switch port, unless an experiment chooses another length
HOST_PACKETS = 1000  # queue of a host in packets; socket buffers limit it much earlier
TCLINK_BUCKET_BYTES = 15 * 1024


@dataclass(frozen=True)
class LinkPolicy:
    """One direction of a link. rate_bps: bits/s that the kernel passes (already divided by time_scale).

    queue_kb: queue length of a switch port in thousands of bytes. A full queue drops further packets.
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
        """Bytes that pass without delay after an idle period.

        tbf: five milliseconds of the link, but at most a quarter of the queue and at least one packet.
        """
        share = min(self.rate_bps / 8 * BUCKET_S, self.queue_bytes / BUCKET_SHARE)
        return {"tbf": max(PACKET_BYTES, round(share)), "tclink": TCLINK_BUCKET_BYTES, "netem": 0}[self.shaper]

    @property
    def gso_packets(self) -> int:
        """The largest number of packets in a GSO segment.

        tbf: half a bucket. The token bucket would cut a larger segment into packets, each with its own timer and its
        own pass through every queue on the route, and that takes more CPU time than there is (docs/decisions/0007). The
        other half of the bucket is for timers that fire late. The other shapers take the kernel's largest segments.
        """
        limit = min(self.bucket_bytes // 2, GSO_BYTES) if self.shaper == "tbf" else GSO_BYTES
        return max(1, limit // PACKET_BYTES)

    def pacing(self) -> Pacing:
        """How ranks pace bytes for this link: tbf's burst credit is charged, the other shapers are used as they are."""
        return BurstCredit(self.rate_bps, self.bucket_bytes) if self.shaper == "tbf" else Unpaced()

    def commands(self, interface: str, host: bool) -> list[str]:
        """The lines for ``tc -batch`` that set this policy on an interface, in place of an earlier one.

        host: whether it is a host's end, where sockets set priorities. A switch port sees no priorities, because
        packets lose them between namespaces.
        """
        root = f"qdisc replace dev {interface} root"
        if self.shaper == "tclink":
            # Another kind of qdisc comes first, because an existing HTB cannot be changed.
            return [f"{root} pfifo limit {HOST_PACKETS}", *self._tclink(interface)]
        if self.shaper == "netem":
            packets = HOST_PACKETS if host else max(1, self.queue_bytes // PACKET_BYTES)
            # Each kind has a handle of its own: the kernel cannot turn the qdisc of a handle into one of another kind.
            return [f"{root} handle 2: netem rate {round(self.rate_bps)}bit limit {packets}"]
        lines = [
            f"{root} handle 1: tbf rate {round(self.rate_bps)}bit burst {self.bucket_bytes}b limit {self.queue_bytes}b"
        ]
        if host:
            # Packets of sockets with IP_TOS low delay go first: acknowledgements, see testbed.comm.connect. The queue
            # is then that of pfifo_fast, with the interface's length in packets, and tbf's own limit has no effect.
            lines.append(f"qdisc replace dev {interface} parent 1: handle 10: pfifo_fast")
        return lines

    def _tclink(self, interface: str) -> list[str]:
        """Mininet's commands for this bandwidth."""
        from mininet.link import TCIntf

        commands, _ = TCIntf.bwCmds(cast(Any, TCIntf), bw=self.rate_bps / 1e6)
        return [(line % ("", interface)).strip().replace("qdisc add", "qdisc replace") for line in commands]
