"""Messages between ranks: several out, one after another, and several in, at once, in one thread.

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
from testbed.comm.pacing import Pacing, Unpaced
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
        self.set_link(Unpaced(), float("inf"))

    def set_link(self, pacing: Pacing, rate_bps: float) -> None:
        """From now on the links run at ``rate_bps`` bits/s and bytes are handed to the kernel as ``pacing`` says."""
        self._pacing, self._rate_bps = pacing, rate_bps
        self._release_s = 0.0
        least, most = AHEAD_BYTES
        self._ahead_bytes = int(min(max(rate_bps / 8 * AHEAD_S, least), most))
        least, most = SEND_BUFFER_BYTES
        send_buffer = int(min(max(rate_bps / 8 * SEND_BUFFER_S, least), most))
        for connection in self._to.values():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            if hasattr(socket, "TCP_NOTSENT_LOWAT") and connection.family == socket.AF_INET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self._ahead_bytes)

    def is_brief(self, payload_bytes: int) -> bool:
        """Whether the link carries this much in so short a time that who sends when does not matter."""
        return 8 * payload_bytes <= BRIEF_S * self._rate_bps

    def run(self, operation: str, sends: dict[int, memoryview], receives: dict[int, memoryview]) -> Timing:
        """Send the messages in this order while receiving all of ``receives``; over when both are done.

        sends: peer -> payload, in sending order; receives: peer -> buffer of exactly the expected payload.
        """
        begin = now = time.monotonic()
        outgoing: deque[_Outgoing] = deque()
        volume = 0
        for peer, payload in sends.items():
            header = pack_header(operation, self.rank, self._sent[peer], len(payload))
            outgoing.append(_Outgoing(peer, self._to[peer], header, payload))
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
        if outgoing and self.is_brief(total := sum(message.left for message in outgoing)):
            # One wake-up for all: the last of them arrives when it would have if each had waited for its turn.
            self._release_s = self._pacing.release(total, begin)
            for message in outgoing:
                message.released = message.left
        # All senders may share one link for a while, and both ends of it.
        deadline = begin + self.timeout_s + 16 * (len(self._to) + 1) * volume / self._rate_bps
        first, arrived = 0.0, begin
        while True:
            full = self._send(operation, outgoing, now)
            if not outgoing and not incoming and now >= arrived:
                return Timing(begin, first or begin, now)
            if now > deadline:
                self._time_out(operation, outgoing, incoming)
            wake = deadline if outgoing or incoming else arrived
            if outgoing and not full:
                wake = min(wake, self._release_s)
            writers = [outgoing[0].connection] if full else []
            readable, _, _ = select.select(list(incoming), writers, [], max(0.0, wake - now))
            now = time.monotonic()
            for connection in readable:
                if count := self._receive(operation, incoming[connection]):
                    first = first or now
                    arrived = max(arrived, self._pacing.arrive(count, now))
                if incoming[connection].got == incoming[connection].size:
                    del incoming[connection]

    def _send(self, operation: str, outgoing: deque[_Outgoing], now: float) -> bool:
        """Hand over all that the pacing lets go; True if it is the kernel that will take no more now."""
        while outgoing:
            message = outgoing[0]
            if not message.released:
                message.released = min(self._pacing.chunk_bytes, message.left)
                self._release_s = self._pacing.release(message.released, now)
            if now < self._release_s:
                return False
            try:
                message.advance(message.connection.send(message.parts[0][: message.released]))
            except BlockingIOError:
                return True
            except OSError as error:
                reason = f"rank {message.peer} is gone: {operation} to it: {error.strerror}"
                raise CommError(reason, [message.peer]) from error
            if not message.parts:
                outgoing.popleft()
        return False

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
            _wake_at(message.connection, min(message.size - message.got, self._ahead_bytes))
        return message.got - before

    def _time_out(self, operation: str, outgoing: deque[_Outgoing], incoming: dict[socket.socket, _Incoming]) -> None:
        """CommError: of a peer that sent something else, or naming all that are missing."""
        for message in incoming.values():
            self._receive(operation, message)  # a wrong message may be too short to have woken this rank
        missing = sorted({message.peer for message in (*incoming.values(), *outgoing)})
        raise CommError(f"rank {self.rank} waited {self.timeout_s:g} s in {operation} for ranks {missing}", missing)


def _wake_at(connection: socket.socket, size: int) -> None:
    """Count a connection as readable once this much has come (or it is closed)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
