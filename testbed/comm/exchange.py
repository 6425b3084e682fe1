"""Messages between ranks: several out, on each link one after another, and several in, at once, in one thread.

The emulated devices share few cores, and each wake-up costs about as much as a packet, so a rank sleeps until enough
has come to be worth it (SO_RCVLOWAT), and hands the kernel only what the link takes in the next moment
(TCP_NOTSENT_LOWAT): bytes for the next peer must not compete with bytes for this one.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque

from testbed.comm.frame import HEADER_BYTES, check_header, pack_header
from testbed.comm.group import Timing, Traffic
from testbed.comm.pacing import Pacing
from testbed.comm.routes import RankLinks, Route
from testbed.errors import CommError

SMALL_BYTES = 1 << 14  # payloads up to this travel in one buffer with their header
PACKET_BYTES = 1448
BRIEF_S = 4e-3  # of the link's time
AHEAD_S = 2e-3  # of the link's time: what is handed to the kernel beyond what it has sent, and read at once
AHEAD_BYTES = (1 << 13, 1 << 18)  # the least and the most of it
# Unacknowledged bytes of a connection. Acknowledgements for the peers queue behind them on the same link: more
# delays those and starves the other direction, less stalls this one.
SEND_BUFFER_S = 10e-3
SEND_BUFFER_BYTES = (1 << 15, 1 << 18)
ALONE = ("send", "barrier")  # operations in which a rank may be the only one that sends


class _Outgoing:
    """A message on its way out. ``released`` of its remaining bytes may be handed to the kernel now."""

    def __init__(self, peer: int, connection: socket.socket, header: bytes, payload: memoryview):
        self.peer, self.connection = peer, connection
        small = len(payload) <= SMALL_BYTES
        self.parts = [memoryview(header + bytes(payload))] if small else [memoryview(header), payload]
        self.left = HEADER_BYTES + len(payload)
        self.released = 0

    def advance(self, sent: int) -> None:
        """Forget what the kernel has taken."""
        self.left -= sent
        self.released -= sent
        self.parts[0] = self.parts[0][sent:]
        if not self.parts[0]:
            self.parts.pop(0)


class _Incoming:
    """A message being received. The header is checked before the first payload byte is used."""

    def __init__(self, peer: int, connection: socket.socket, payload: memoryview):
        self.peer, self.connection, self.payload = peer, connection, payload
        self.size = HEADER_BYTES + len(payload)
        self.small = len(payload) <= SMALL_BYTES
        self.front = memoryview(bytearray(self.size if self.small else HEADER_BYTES))
        self.got = 0

    def target(self) -> memoryview:
        """Where the next bytes go."""
        return self.front[self.got :] if self.got < len(self.front) else self.payload[self.got - HEADER_BYTES :]


class _Lane:
    """Messages that queue at the same link, one after another. release_s: when the next bytes may be handed over."""

    def __init__(self, route: Route, alike: int):
        self.route, self._alike = route, alike
        self.messages: deque[_Outgoing] = deque()
        self.release_s = 0.0

    @property
    def left(self) -> int:
        """Bytes that the kernel has not taken."""
        return sum(message.left for message in self.messages)

    def release(self, size: int, now: float) -> None:
        """Ask the pacing for so many bytes, while ``alike`` ranks do the same."""
        self.release_s = self.route.pacing.release(size * self._alike, now)


class Exchange:
    """One rank's connections to its peers. CommError names a peer that is gone, late or breaks the protocol."""

    def __init__(
        self,
        rank: int,
        to: dict[int, socket.socket],
        source: dict[int, socket.socket],
        timeout_s: float,
        traffic: Traffic,
    ):
        self.rank, self.timeout_s, self.traffic = rank, timeout_s, traffic
        self._to, self._source = to, source
        self._sent = dict.fromkeys(to, 0)  # sequence numbers
        self._seen = dict.fromkeys(source, 0)
        for connection in (*to.values(), *source.values()):
            connection.setblocking(False)

    def set_links(self, links: RankLinks) -> None:
        """From now on bytes are handed to the kernel as these routes say."""
        self._routes, self._slowest_bps = links.routes, links.slowest_bps
        self._ahead_bytes: dict[int, int] = {}
        for peer, connection in self._to.items():
            rate_bps = links.routes[peer].rate_bps
            self._ahead_bytes[peer] = ahead_bytes = _clamped(rate_bps, AHEAD_S, AHEAD_BYTES)
            send_buffer = _clamped(rate_bps, SEND_BUFFER_S, SEND_BUFFER_BYTES)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            if hasattr(socket, "TCP_NOTSENT_LOWAT") and connection.family == socket.AF_INET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, ahead_bytes)

    def is_brief(self, payload_bytes: int) -> bool:
        """Whether the slowest route carries this much in so short a time that who sends when does not matter."""
        return _is_brief(payload_bytes, self._slowest_bps)

    def run(self, operation: str, sends: dict[int, memoryview], receives: dict[int, memoryview]) -> Timing:
        """Send the messages in this order while receiving all of ``receives``; over when both are done.

        Messages that queue at different links go side by side. In an operation of all ranks, what this rank sends over
        a link that others use too counts as often as there are such ranks, since they send alike.

        sends: peer -> payload, in sending order; receives: peer -> buffer of exactly the expected payload.
        """
        begin = now = time.monotonic()
        lanes: dict[Pacing, _Lane] = {}
        volume = 0
        for peer, payload in sends.items():
            route = self._routes[peer]
            lane = lanes.setdefault(route.pacing, _Lane(route, 1 if operation in ALONE else route.payers))
            header = pack_header(operation, self.rank, self._sent[peer], len(payload))
            lane.messages.append(_Outgoing(peer, self._to[peer], header, payload))
            self._sent[peer] += 1
            self.traffic.sent_bytes += len(payload)
            volume += len(payload)
        incoming: dict[socket.socket, _Incoming] = {}
        for peer, payload in receives.items():
            message = _Incoming(peer, self._source[peer], payload)
            incoming[message.connection] = message
            self.traffic.received_bytes += len(payload)
            volume += len(payload)
            _wake_at(message.connection, min(message.size, PACKET_BYTES))  # the first packet, to tell waiting from wire
        self.traffic.operations += 1
        outgoing = list(lanes.values())
        for lane in outgoing:
            if _is_brief(lane.left, lane.route.rate_bps):
                # One wake-up for all: the last of them arrives when it would have if each had waited for its turn.
                lane.release(lane.left, begin)
                for message in lane.messages:
                    message.released = message.left
        # All senders may share one link for a while, and both ends of it.
        deadline = begin + self.timeout_s + 16 * (len(self._to) + 1) * volume / self._slowest_bps
        first, arrived = 0.0, begin
        while True:
            full = [connection for lane in outgoing if (connection := self._send(operation, lane, now))]
            outgoing = [lane for lane in outgoing if lane.messages]
            if not outgoing and not incoming and now >= arrived:
                return Timing(begin, first or begin, now)
            if now > deadline:
                self._time_out(operation, outgoing, incoming)
            wake = deadline if outgoing or incoming else arrived
            wake = min([wake, *(lane.release_s for lane in outgoing if lane.release_s > now)])
            readable, _, _ = select.select(list(incoming), full, [], max(0.0, wake - now))
            now = time.monotonic()
            for connection in readable:
                message = incoming[connection]
                if count := self._receive(operation, message):
                    first = first or now
                    arrived = max(arrived, self._routes[message.peer].pacing.arrive(count, now))
                if message.got == message.size:
                    del incoming[connection]

    def _send(self, operation: str, lane: _Lane, now: float) -> socket.socket | None:
        """Hand over all that the pacing lets go. Returns the connection on which the kernel takes no more now."""
        while lane.messages:
            message = lane.messages[0]
            if not message.released:
                message.released = min(lane.route.pacing.chunk_bytes, message.left)
                lane.release(message.released, now)
            if now < lane.release_s:
                return None
            try:
                message.advance(message.connection.send(message.parts[0][: message.released]))
            except BlockingIOError:
                return message.connection
            except OSError as error:
                reason = f"rank {message.peer} is gone: {operation} to it: {error.strerror}"
                raise CommError(reason, [message.peer]) from error
            if not message.parts:
                lane.messages.popleft()
        return None

    def _receive(self, operation: str, message: _Incoming) -> int:
        """Read what has come of one message; returns the number of bytes."""
        before, peer = message.got, message.peer
        while message.got < message.size:
            try:
                count = message.connection.recv_into(message.target())
            except BlockingIOError:
                break
            except OSError as error:
                raise CommError(f"rank {peer} is gone: {operation} from it: {error.strerror}", [peer]) from error
            if count == 0:
                raise CommError(f"rank {peer} closed its connection during {operation}", [peer])
            message.got += count
            if message.got - count < HEADER_BYTES <= message.got:
                header = bytes(message.front[:HEADER_BYTES])
                check_header(header, operation, peer, self._seen[peer], len(message.payload))
        if message.got == message.size:
            self._seen[peer] += 1
            if message.small:
                message.payload[:] = message.front[HEADER_BYTES:]
        else:
            _wake_at(message.connection, min(message.size - message.got, self._ahead_bytes[peer]))
        return message.got - before

    def _time_out(self, operation: str, outgoing: list[_Lane], incoming: dict[socket.socket, _Incoming]) -> None:
        """CommError: of a peer that sent something else, or naming all that are missing."""
        for message in incoming.values():
            self._receive(operation, message)  # a wrong message may be too short to have woken this rank
        unsent = [message for lane in outgoing for message in lane.messages]
        missing = sorted({message.peer for message in (*incoming.values(), *unsent)})
        raise CommError(f"rank {self.rank} waited {self.timeout_s:g} s in {operation} for ranks {missing}", missing)


def _wake_at(connection: socket.socket, size: int) -> None:
    """Count a connection as readable once this much has come (or it is closed)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)


def _is_brief(size: int, rate_bps: float) -> bool:
    return 8 * size <= BRIEF_S * rate_bps


def _clamped(rate_bps: float, seconds: float, limits: tuple[int, int]) -> int:
    """Bytes of so much time at a rate, within limits."""
    least, most = limits
    return int(min(max(rate_bps / 8 * seconds, least), most))
