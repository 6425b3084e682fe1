"""Messages in transit: the bytes of each that have left or arrived, and the operation that it belongs to."""

from __future__ import annotations

import socket
import time

from testbed.comm.frame import HEADER_BYTES

SMALL_BYTES = 1 << 14  # payloads up to this travel in one buffer with their header
PACKET_BYTES = 1448
NOTHING = memoryview(bytearray())  # the payload of an empty message


class Operation:
    """The messages of one operation. sends: peer -> payload, in sending order; receives: peer -> buffer.

    senders: ranks that send such messages to the same peers, this one included, as far as the caller has said.
    """

    def __init__(self, name: str, sends: dict[int, memoryview], receives: dict[int, memoryview], senders: int = 1):
        self.name, self.sends, self.receives, self.senders = name, sends, receives, senders
        self.volume = sum(map(len, (*sends.values(), *receives.values())))
        self.messages = len(sends) + len(receives)  # that are not complete
        self.begin_s = self.done_s = self.ready_s = time.monotonic()  # ready_s: when the device has handed it over
        self.first_s = 0.0
        self.due_s = 0.0  # when ideal links and the hosts of the device profile would have delivered all of it

    def end_message(self, now: float) -> None:
        """Count one message as complete."""
        self.messages -= 1
        self.done_s = max(now, self.due_s)


class Outgoing:
    """A message being sent. From ``release_s`` on, the kernel may get ``released`` of its bytes.

    ready_s: when it began to wait for the messages before it.
    """

    def __init__(
        self,
        operation: Operation,
        peer: int,
        connection: socket.socket,
        header: bytes,
        payload: memoryview,
        ready_s: float,
    ):
        self.operation, self.peer, self.connection = operation, peer, connection
        small = len(payload) <= SMALL_BYTES
        self.parts = [memoryview(header + bytes(payload))] if small else [memoryview(header), payload]
        self.left = HEADER_BYTES + len(payload)
        self.ready_s, self.released, self.release_s = ready_s, 0, 0.0

    def advance(self, sent: int) -> None:
        """Drop the bytes that the kernel has accepted."""
        self.left -= sent
        self.released -= sent
        self.parts[0] = self.parts[0][sent:]
        if not self.parts[0]:
            self.parts.pop(0)


class Incoming:
    """A message being received. The header is checked before the first payload byte is used."""

    def __init__(self, operation: Operation, peer: int, connection: socket.socket, payload: memoryview):
        self.operation, self.peer, self.connection, self.payload = operation, peer, connection, payload
        self.size = HEADER_BYTES + len(payload)
        self.small = len(payload) <= SMALL_BYTES
        self.front = memoryview(bytearray(self.size if self.small else HEADER_BYTES))
        self.got = 0
        self.begin_s = 0.0  # when the sender's link began with it

    def target(self) -> memoryview:
        """The buffer for the next bytes."""
        return self.front[self.got :] if self.got < len(self.front) else self.payload[self.got - HEADER_BYTES :]

    def listen(self) -> None:
        """Wake up at its first packet, which separates waiting time from wire time."""
        wake_at(self.connection, min(self.size, PACKET_BYTES))


def wake_at(connection: socket.socket, size: int) -> None:
    """Treat a connection as readable once ``size`` bytes have arrived or it is closed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
