"""Messages between ranks. One thread sends them one after another and receives from all peers at the same time.

The emulated devices share few cores, and a wake-up costs about as much as a packet. A rank therefore sleeps until
enough bytes have arrived (SO_RCVLOWAT). It hands the kernel only the bytes that the link sends next
(TCP_NOTSENT_LOWAT), so bytes for the next peer do not compete with bytes for the current one.

Operations may be queued while another one runs. Their messages leave after its own and are received as they arrive, so
the link does not idle between operations. All ranks queue operations in the same order.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import time
from collections import deque
from collections.abc import Callable

from testbed.comm.frame import HEADER_BYTES, check_header, pack_header
from testbed.comm.group import Timing
from testbed.comm.message import NOTHING, PACKET_BYTES, Incoming, Operation, Outgoing, wake_at
from testbed.comm.pacing import Pacing, clamped_bytes, fits
from testbed.comm.routes import RankLinks, Route
from testbed.comm.wire import is_brief
from testbed.device.traffic import Traffic
from testbed.errors import CommError

# Messages that the link carries in this time leave together, after one wake-up, when the last of them may leave. It is
# time of this machine, as it saves wake-ups of this machine. When messages arrive does not depend on it.
ONE_WAKE_S = 4e-3
# The next two are seconds of the link on the emulated devices' clock, so a time scale does not change the bytes.
AHEAD_S = 2e-3  # bytes in the kernel beyond those sent, and bytes that one read waits for
AHEAD_BYTES = (1 << 13, 1 << 18)  # minimum and maximum of these bytes
# Unacknowledged bytes of a connection. Acknowledgements for the peers queue behind these bytes on the same link. A
# larger buffer delays them and starves the other direction; a smaller one stalls this direction.
SEND_BUFFER_S = 10e-3
SEND_BUFFER_BYTES = (1 << 15, 1 << 18)
READY = "ready"
POINT_TO_POINT = ("send", "barrier", READY)  # operations in which this rank may be the only sender
WITHOUT_DATA = ("barrier", READY)  # operations of this emulation, which carry nothing of a device's memory


class Exchange:
    """One rank's connections to its peers. CommError names a peer that is gone, is late or breaks the protocol.

    host_message_s: payload bytes of a message -> seconds that the hosts of the emulated devices add to it, on the
    devices' clock. computing_s: how long peers may compute before they send, beyond ``timeout_s``.
    """

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
        self._outgoing: dict[Pacing, deque[Outgoing]] = {}  # by link, in sending order
        self._incoming: dict[socket.socket, deque[Incoming]] = {}
        self._finishing = False  # whether a thread is in ``finish``
        self.host_message_s: Callable[[int], float] = lambda payload_bytes: 0.0
        self.computing_s = self._done_s = 0.0
        self._waker, self._woken = socket.socketpair()  # wakes that thread when another one queues an operation
        for connection in (*to.values(), *source.values(), self._waker, self._woken):
            connection.setblocking(False)

    def set_links(self, links: RankLinks, time_scale: float) -> None:
        """Send over these routes from now on. time_scale: factor by which they are slower than the emulated links."""
        self._routes, self._slowest_bps, self._time_scale = links.routes, links.slowest_bps, time_scale
        self._ahead_bytes: dict[int, int] = {}
        for peer, connection in self._to.items():
            rate_bps = links.routes[peer].rate_bps
            self._ahead_bytes[peer] = ahead_bytes = clamped_bytes(rate_bps, time_scale * AHEAD_S, AHEAD_BYTES)
            send_buffer = clamped_bytes(rate_bps, time_scale * SEND_BUFFER_S, SEND_BUFFER_BYTES)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            if hasattr(socket, "TCP_NOTSENT_LOWAT") and connection.family == socket.AF_INET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, ahead_bytes)

    def is_brief(self, payload_bytes: int) -> bool:
        """Whether the slowest route carries this message so quickly that it needs no rounds."""
        return is_brief(payload_bytes, self._time_scale * self._slowest_bps)

    def run(self, name: str, sends: dict[int, memoryview], receives: dict[int, memoryview], senders: int = 1) -> Timing:
        """Send the messages in this order while receiving all of ``receives``. Return when both are complete.

        Messages that queue at different links are sent in parallel. In a collective, all ranks send alike, so a message
        is paced as if each of the contending senders sent one like it.

        sends: peer -> payload, in sending order. receives: peer -> buffer of exactly the expected payload. senders: see
        ``Group.exchange_async``.
        """
        return self.finish(self.queue(name, sends, receives, senders))

    def run_when_ready(self, name: str, sends: dict[int, memoryview], receives: dict[int, memoryview]) -> list[Timing]:
        """``run``, except that a message that is not brief waits until its receiver is ready for it (rendezvous).

        A receiver is ready when it has all earlier messages. So two senders never share one receiver's link while
        another link idles, however late the senders are and however unequal their messages.
        """
        ready = Operation(READY, self._nothing_for(receives), self._nothing_for(sends))
        if not ready.messages:
            return [self.run(name, sends, receives)]
        ready.volume = sum(map(len, (*sends.values(), *receives.values())))  # the peers may be busy with as many bytes
        self._queued.append(ready)
        return [self.finish(ready), self.run(name, sends, receives)]

    def queue(
        self, name: str, sends: dict[int, memoryview], receives: dict[int, memoryview], senders: int = 1
    ) -> Operation:
        """As ``run``, but return immediately. The thread that is in ``finish``, now or later, does the work."""
        operation = Operation(name, sends, receives, senders)
        operation.ready_s = self._ready_s(operation.begin_s)
        self._queued.append(operation)
        if self._finishing:
            with contextlib.suppress(BlockingIOError):  # the buffer is full of earlier wake-ups
                self._waker.send(b"!")
        return operation

    def finish(self, operation: Operation) -> Timing:
        """Work on all queued operations until this one is complete. One thread at a time, in queueing order."""
        now = time.monotonic()
        # At worst, all senders share one link in both directions, and a peer computes all of its pass first.
        wire_s = 16 * (len(self._to) + 1) * operation.volume / self._slowest_bps
        deadline = now + self.timeout_s + self.computing_s + wire_s
        self._finishing = True
        while True:
            self._start_queued(now)
            full = self._send(now)
            if not operation.messages and now >= operation.done_s:
                self._finishing, self._done_s = False, operation.done_s
                due_s = operation.due_s if self.is_brief(max(map(len, operation.receives.values()), default=0)) else 0.0
                return Timing(operation.begin_s, operation.first_s or operation.begin_s, operation.done_s, due_s)
            if now > deadline:
                self._time_out(operation)
            wake = deadline if operation.messages else operation.done_s
            heads = (messages[0] for messages in self._outgoing.values())
            wake = min([wake, *(message.release_s for message in heads if message.release_s > now)])
            readable, _, _ = select.select([*self._incoming, self._woken], full, [], max(0.0, wake - now))
            now = time.monotonic()
            for connection in readable:
                if connection is self._woken:
                    connection.recv(PACKET_BYTES)
                else:
                    self._receive(self._incoming[connection][0], now)

    def close(self) -> None:
        """Close the wake-up sockets. The connections belong to the caller."""
        self._waker.close()
        self._woken.close()

    def _start_queued(self, now: float) -> None:
        """Append the messages of all queued operations to those of their links and connections."""
        while self._queued:
            operation = self._queued.popleft()
            by_link: dict[Pacing, list[Outgoing]] = {}
            for peer, payload in operation.sends.items():
                begin_s, _ = self._routes[peer].pacing.out.carry(HEADER_BYTES + len(payload), operation.ready_s)
                header = pack_header(operation.name, self.rank, self._sent[peer], len(payload), begin_s)
                message = Outgoing(operation, peer, self._to[peer], header, payload, now)
                by_link.setdefault(self._routes[peer].pacing, []).append(message)
                self._sent[peer] += 1
                self.traffic.sent_bytes += len(payload)
            for peer, payload in operation.receives.items():
                self._expect(Incoming(operation, peer, self._source[peer], payload))
                self.traffic.received_bytes += len(payload)
            for pacing, messages in by_link.items():
                left, rate_bps = sum(message.left for message in messages), self._route(messages[0]).rate_bps
                if fits(left, ONE_WAKE_S, rate_bps):
                    # One wake-up for all. The last one arrives as if each had waited for its own release time.
                    release_s = self._release_s(messages[0], left, now)
                    for message in messages:
                        message.released, message.release_s = message.left, release_s
                self._outgoing.setdefault(pacing, deque()).extend(messages)

    def _nothing_for(self, messages: dict[int, memoryview]) -> dict[int, memoryview]:
        """An empty message for each message that is not brief. Both ends know the length, so they agree."""
        return {peer: NOTHING for peer, payload in messages.items() if not self.is_brief(len(payload))}

    def _route(self, message: Outgoing) -> Route:
        return self._routes[message.peer]

    def _release_s(self, message: Outgoing, size: int, now: float) -> float:
        """When ``size`` bytes of this message and of those after it may leave, with those of contending senders."""
        route = self._route(message)
        operation = message.operation
        senders = operation.senders if operation.name in POINT_TO_POINT else route.contending_senders
        return route.pacing.release(size * senders, now, message.ready_s)

    def _expect(self, message: Incoming) -> None:
        """Receive this message after the earlier ones on its connection."""
        messages = self._incoming.setdefault(message.connection, deque())
        messages.append(message)
        if len(messages) == 1:
            message.listen()

    def _send(self, now: float) -> list[socket.socket]:
        """Hand the kernel all bytes that pacing releases. Returns the connections whose send buffer is full."""
        full = []
        for pacing, messages in list(self._outgoing.items()):
            if connection := self._send_over_link(messages, now):
                full.append(connection)
            if not messages:
                del self._outgoing[pacing]
        return full

    def _send_over_link(self, messages: deque[Outgoing], now: float) -> socket.socket | None:
        """``_send`` for the messages that queue at one link."""
        while messages:
            message = messages[0]
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
                messages.popleft()
                message.operation.end_message(now)
        return None

    def _receive(self, message: Incoming, now: float) -> None:
        """Read the bytes that have arrived of the first message of its connection."""
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
                message.begin_s = check_header(header, operation.name, peer, self._seen[peer], len(message.payload))
        if message.got > before:
            operation.first_s = operation.first_s or now
        if message.got < message.size:
            wake_at(message.connection, min(message.size - message.got, self._ahead_bytes[peer]))
            return
        if message.small:
            message.payload[:] = message.front[HEADER_BYTES:]
        self._seen[peer] += 1
        operation.due_s = max(operation.due_s, self._due_s(message, now))
        operation.end_message(now)
        messages = self._incoming[message.connection]
        messages.popleft()
        if messages:
            messages[0].listen()
        else:
            del self._incoming[message.connection]

    def _ready_s(self, now: float) -> float:
        """When an emulated device hands over what is queued now: as its last segment or its last operation ends.

        What this machine needs from then on is hidden in what the devices' hosts need for a message.
        """
        return max(self.traffic.computed_s, self._done_s) if self.traffic.computed_s else now

    def _due_s(self, message: Incoming, now: float) -> float:
        """When this complete message is due: after ideal links of sender and receiver, and after what hosts add.

        A token bucket on the way may have let it through earlier. The sender's time is not trusted further than that
        its link had begun.
        """
        _, end_s = self._routes[message.peer].pacing.into.carry(message.size, min(message.begin_s, now))
        if message.operation.name in WITHOUT_DATA:
            return end_s
        return end_s + self._time_scale * self.host_message_s(len(message.payload))

    def _time_out(self, operation: Operation) -> None:
        """CommError that names a peer with a wrong message, or else all missing peers."""
        for messages in list(self._incoming.values()):
            self._receive(messages[0], time.monotonic())  # a wrong message may be too short to wake this rank
        waiting = itertools.chain(*self._outgoing.values(), *self._incoming.values())
        missing = sorted({message.peer for message in waiting if message.operation is operation})
        computing = f" and {self.computing_s:.1f} s of computation" if self.computing_s >= 1 else ""
        reason = f"rank {self.rank} waited {self.timeout_s:g} s{computing} in {operation.name} for ranks {missing}"
        raise CommError(reason, missing)
