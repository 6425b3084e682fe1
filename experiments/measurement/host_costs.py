"""What a message costs the hosts of this machine: a TCP exchange between two processes, and a copy of its bytes."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time

from testbed.errors import EnvironmentFault

HOST = "127.0.0.1"
BYTES = 320  # as ASTRA sends for 256 tokens with one codebook
WARM_UP = 50
TIMEOUT_S = 30.0  # for the other process to start, and for each message
OTHER = "experiments.measurement.host_costs"  # the module that the other process runs


def exchange_s(count: int = 1000) -> float:
    """Half the median time of a TCP exchange of BYTES in each direction between two processes of this machine.

    Raises EnvironmentFault if the other process cannot be reached.
    """
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(TIMEOUT_S)
        other = subprocess.Popen([sys.executable, "-m", OTHER, str(listener.getsockname()[1]), str(WARM_UP + count)])
        try:
            connection, _ = listener.accept()
            with connection:
                _undelayed(connection)
                return statistics.median([_ping(connection) for _ in range(WARM_UP + count)][WARM_UP:]) / 2
        except (OSError, EOFError) as error:
            raise EnvironmentFault(f"no TCP exchange with another process on {HOST}: {error}") from None
        finally:
            other.kill()
            other.wait()


def _ping(connection: socket.socket) -> float:
    begin = time.perf_counter()
    connection.sendall(bytes(BYTES))
    _receive(connection)
    return time.perf_counter() - begin


def _echo(port: int, count: int) -> None:
    """Send back what arrives, ``count`` times."""
    with socket.create_connection((HOST, port), TIMEOUT_S) as connection:
        _undelayed(connection)
        for _ in range(count):
            connection.sendall(_receive(connection))


def _undelayed(connection: socket.socket) -> None:
    connection.settimeout(TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _receive(connection: socket.socket) -> bytes:
    parts = b""
    while len(parts) < BYTES:
        part = connection.recv(BYTES - len(parts))
        if not part:
            raise EOFError("the connection was closed")
        parts += part
    return parts


if __name__ == "__main__":
    _echo(*map(int, sys.argv[1:]))
