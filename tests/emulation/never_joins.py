"""Run by a test: a cluster of which one rank is stopped before the ranks connect, then goes on."""

from __future__ import annotations

import signal
import sys

import psutil

from testbed.errors import TestbedError
from testbed.network.sandbox import inside, supervise
from testbed.session import Session
from tests.emulation.machine import actor
from topologies.link_graph import star


def main() -> int:
    """Print what joining says without and with the rank; exit code 0."""
    if not inside():
        return supervise([], "mininet", module="tests.emulation.never_joins")
    with Session("mininet", star(2), timeout_s=3.0) as session:
        rank_1 = actor(psutil.Process(), 1)
        rank_1.send_signal(signal.SIGSTOP)
        try:
            session.join()
        except TestbedError as error:
            print(error)
        rank_1.send_signal(signal.SIGCONT)
        session.join()
        print("joined")
    return 0


if __name__ == "__main__":
    sys.exit(main())
