"""Messages between ranks: several out, one after another, and several in, at once, in one thread.

The emulated devices share few cores, and each wake-up costs about as much as a packet, so a rank sleeps until enough
has come to be worth it (SO_RCVLOWAT), and hands the kernel only what the link takes in the next moment
(TCP_NOTSENT_LOWAT): bytes for the next peer must not compete with bytes for this one.

Operations may be queued while another is under way: their messages leave behind its own and are received as they come,
so that the link does not rest between them. All ranks queue them in the same order.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import deque

from testbed.comm.frame import HEADER_BYTES, check_header, pack_header
from testbed.comm.group import Timing
from testbed.comm.message import NOTHING, PACKET_BYTES, Incoming, Operation, Outgoing, wake_at
from testbed.comm.pacing import Pacing
from testbed.comm.routes import RankLinks, Route
from testbed.device.traffic import Traffic
from testbed.errors import CommError

# Of the link's time. A message to each peer that is shorter needs no rounds: who runs ahead takes little of anybody's
# link. Four devices gather 10 KB each at 10 Mbps in 1.07 times the ideal so, in 1.08 with rounds; 4 ms were too little.
BRIEF_S = 30e-3
ONE_WAKE_S = 4e-3  # messages that are done in this time leave at once, when the last of them should
AHEAD_S = 2e-3  # of the link's time: what is handed to the kernel beyond what it has sent, and read at once
AHEAD_BYTES = (1 << 13, 1 << 18)  # the least and the most of it
# Unacknowledged bytes of a connection. Acknowledgements for the peers queue behind them on the same link: more
# delays those and starves the other direction, less stalls this one.
SEND_BUFFER_S = 10e-3
SEND_BUFFER_BYTES = (1 << 15, 1 << 18)
READY = "ready"
ALONE = ("send", "barrier", READY)  # operations in which a rank may be the only one that sends


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
        self._queued: deque[Operation] = deque()
        self._lanes: dict[Pacing, deque[Outgoing]] = {}  # messages that queue at the same link, one after another
        self._incoming: dict[socket.socket, deque[Incoming]] = {}
        self._carried_on = False  # whether a thread is in ``finish``
        self._bell, self._listener = socket.socketpair()  # rung when an operation is queued by another thread
        for connection in (*to.values(), *source.values(), self._bell, self._listener):
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
        return _fits(payload_bytes, BRIEF_S, self._slowest_bps)

    def run(self, name: str, sends: dict[int, memoryview], receives: dict[int, memoryview], senders: int = 1) -> Timing:
        """Send the messages in this order while receiving all of ``receives``; over when both are done.

        Messages that queue at different links go side by side. In an operation of all ranks, what this rank sends over
        a link that others use too counts as often as there are such ranks, since they send alike.

        sends: peer -> payload, in sending order; receives: peer -> buffer of exactly the expected payload. senders: see
        ``Group.exchange_async``.
        """
        return self.finish(self.queue(name, sends, receives, senders))

    def run_in_turn(self, name: str, sends: dict[int, memoryview], receives: dict[int, memoryview]) -> list[Timing]:
        """``run``, but a message that is not brief leaves when its receiver says that it has what came before.

        So no two of them share a receiver's link while another rests, however late or unlike the senders are.
        """
        ready = Operation(READY, self._nothing_for(receives), self._nothing_for(sends))
        if not ready.messages:
            return [self.run(name, sends, receives)]
        ready.volume = sum(map(len, (*sends.values(), *receives.values())))  # for as much the others may have to wait
        self._queued.append(ready)
        return [self.finish(ready), self.run(name, sends, receives)]

    def queue(
        self, name: str, sends: dict[int, memoryview], receives: dict[int, memoryview], senders: int = 1
    ) -> Operation:
        """As ``run``, but returns at once: the thread that is in ``finish``, now or later, carries it on."""
        operation = Operation(name, sends, receives, senders)
        self._queued.append(operation)
        if self._carried_on:
            with contextlib.suppress(BlockingIOError):  # it has been rung often enough
                self._bell.send(b"!")
        return operation

    def finish(self, operation: Operation) -> Timing:
        """Carry on with all queued operations until this one is done. In one thread at a time, in queueing order."""
        now = time.monotonic()
        # All senders may share one link for a while, and both ends of it.
        deadline = now + self.timeout_s + 16 * (len(self._to) + 1) * operation.volume / self._slowest_bps
        self._carried_on = True
        while True:
            self._take_up(now)
            full = self._send(now)
            if not operation.messages and now >= operation.done_s:
                self._carried_on = False
                return Timing(operation.begin_s, operation.first_s or operation.begin_s, operation.done_s)
            if now > deadline:
                self._time_out(operation)
            wake = deadline if operation.messages else operation.done_s
            wake = min([wake, *(lane[0].release_s for lane in self._lanes.values() if lane[0].release_s > now)])
            readable, _, _ = select.select([*self._incoming, self._listener], full, [], max(0.0, wake - now))
            now = time.monotonic()
            for connection in readable:
                if connection is self._listener:
                    connection.recv(PACKET_BYTES)
                else:
                    self._receive(self._incoming[connection][0], now)

    def close(self) -> None:
        """Close what is ours; the connections belong to the caller."""
        self._bell.close()
        self._listener.close()

    def _take_up(self, now: float) -> None:
        """Line up the messages of what has been queued."""
        while self._queued:
            operation = self._queued.popleft()
            lanes: dict[Pacing, list[Outgoing]] = {}
            for peer, payload in operation.sends.items():
                header = pack_header(operation.name, self.rank, self._sent[peer], len(payload))
                message = Outgoing(operation, peer, self._to[peer], header, payload, now)
                lanes.setdefault(self._routes[peer].pacing, []).append(message)
                self._sent[peer] += 1
                self.traffic.sent_bytes += len(payload)
            for peer, payload in operation.receives.items():
                self._expect(Incoming(operation, peer, self._source[peer], payload))
                self.traffic.received_bytes += len(payload)
            for pacing, messages in lanes.items():
                left, rate_bps = sum(message.left for message in messages), self._route(messages[0]).rate_bps
                if _fits(left, ONE_WAKE_S, rate_bps):
                    # One wake-up for all: the last of them arrives when it would have if each had waited for its ready.
                    release_s = self._release_s(messages[0], left, now)
                    for message in messages:
                        message.released, message.release_s = message.left, release_s
                self._lanes.setdefault(pacing, deque()).extend(messages)

    def _nothing_for(self, messages: dict[int, memoryview]) -> dict[int, memoryview]:
        """An empty message for each that is not brief. Both ends know its length, so they agree on that."""
        return {peer: NOTHING for peer, payload in messages.items() if not self.is_brief(len(payload))}

    def _route(self, message: Outgoing) -> Route:
        return self._routes[message.peer]

    def _release_s(self, message: Outgoing, size: int, now: float) -> float:
        """When so many bytes of a message, and of others behind it, may be handed over; ranks that send alike count."""
        route = self._route(message)
        contending_senders = message.operation.senders if message.operation.name in ALONE else route.contending_senders
        return route.pacing.release(size * contending_senders, now, message.ready_s)

    def _expect(self, message: Incoming) -> None:
        """Receive it after what else is to come on its connection."""
        line = self._incoming.setdefault(message.connection, deque())
        line.append(message)
        if len(line) == 1:
            message.listen()

    def _send(self, now: float) -> list[socket.socket]:
        """Hand over all that the pacing lets go. Returns the connections on which the kernel takes no more now."""
        full = []
        for pacing, lane in list(self._lanes.items()):
            if connection := self._send_lane(lane, now):
                full.append(connection)
            if not lane:
                del self._lanes[pacing]
        return full

    def _send_lane(self, lane: deque[Outgoing], now: float) -> socket.socket | None:
        """``_send`` for what queues at one link."""
        while lane:
            message = lane[0]
            if not message.released:
                message.released = min(self._route(message).pacing.chunk_bytes, message.left)
                message.release_s = self._release_s(message, message.released, now)
            if now < message.release_s:
                return None
            try:
                message.advance(message.connection.send(message.parts[0][: message.released]))
            except BlockingIOError:
                return message.connection
            except OSError as error:
                reason = f"rank {message.peer} is gone: {message.operation.name} to it: {error.strerror}"
                raise CommError(reason, [message.peer]) from error
            if not message.parts:
                lane.popleft()
                message.operation.end_message(now)
        return None

    def _receive(self, message: Incoming, now: float) -> None:
        """Read what has come of the next message of its connection."""
        before, peer, operation = message.got, message.peer, message.operation
        while message.got < message.size:
            try:
                count = message.connection.recv_into(message.target())
            except BlockingIOError:
                break
            except OSError as error:
                raise CommError(f"rank {peer} is gone: {operation.name} from it: {error.strerror}", [peer]) from error
            if count == 0:
                raise CommError(f"rank {peer} closed its connection during {operation.name}", [peer])
            message.got += count
            if message.got - count < HEADER_BYTES <= message.got:
                header = bytes(message.front[:HEADER_BYTES])
                check_header(header, operation.name, peer, self._seen[peer], len(message.payload))
        if message.got > before:
            operation.first_s = operation.first_s or now
            operation.arrived_s = max(operation.arrived_s, self._routes[peer].pacing.arrive(message.got - before, now))
        if message.got < message.size:
            wake_at(message.connection, min(message.size - message.got, self._ahead_bytes[peer]))
            return
        if message.small:
            message.payload[:] = message.front[HEADER_BYTES:]
        self._seen[peer] += 1
        operation.end_message(now)
        line = self._incoming[message.connection]
        line.popleft()
        if line:
            line[0].listen()
        else:
            del self._incoming[message.connection]

    def _time_out(self, operation: Operation) -> None:
        """CommError: of a peer that sent something else, or naming all that are missing."""
        for line in list(self._incoming.values()):
            self._receive(line[0], time.monotonic())  # a wrong message may be too short to have woken this rank
        lines = (*self._lanes.values(), *self._incoming.values())
        missing = sorted({message.peer for line in lines for message in line if message.operation is operation})
        reason = f"rank {self.rank} waited {self.timeout_s:g} s in {operation.name} for ranks {missing}"
        raise CommError(reason, missing)


def _fits(size: int, seconds: float, rate_bps: float) -> bool:
    """Whether a link carries so many bytes in this time."""
    return 8 * size <= seconds * rate_bps


def _clamped(rate_bps: float, seconds: float, limits: tuple[int, int]) -> int:
    """Bytes of so much time at a rate, within limits."""
    least, most = limits
    return int(min(max(rate_bps / 8 * seconds, least), most))
