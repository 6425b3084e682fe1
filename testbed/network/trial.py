"""What a run needs of the Mininet backend, tried step by step in the same namespaces: ``testbed.network.probe``.

Run by the probe in the sandbox. It reads a link graph as JSON, and prints a line of JSON before each step and one with
what it found. The last step that it announced is the one that failed.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import TYPE_CHECKING

from testbed.device.priority import attainable_priority
from testbed.errors import EnvironmentFault
from testbed.network.probe import kernel_qdiscs
from testbed.network.qdisc import network_of
from testbed.network.shaping import SHAPERS
from topologies.link_graph import LinkGraph

if TYPE_CHECKING:
    from testbed.network.mininet import MininetNetwork

MESSAGE = b"a message between two hosts"
TIMEOUT_S = 5.0
TRIAL_BPS = 1e8


def main() -> int:
    """Make the hosts and links of a graph, shape them, and send a message. Exit code 1 after a line with the reason."""
    devices, shares = json.load(sys.stdin)
    graph = LinkGraph(devices, tuple((a, b, share) for a, b, share in shares))
    try:
        _say(step="importing Mininet")
        from testbed.network.mininet import MininetNetwork

        _say(step="hosts and links")
        with MininetNetwork(graph) as network:
            _say(step="shaping the links")
            network.shape(TRIAL_BPS, SHAPERS[0])
            _say(step="the counters of the links")
            network.link_counters()
            _say(step="a message between two hosts")
            if graph.devices > 1:
                _send(network)
            _say(
                step="",
                facts={
                    "priority": attainable_priority(),
                    "sysctl_refused": network.sysctl_refused,
                    "keeps_packet_order": network.keeps_packet_order,
                    "qdiscs": kernel_qdiscs(),
                },
            )
    except (EnvironmentFault, OSError, ImportError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def _say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def _send(network: MininetNetwork) -> None:
    """A TCP connection from the second host to the first one. OSError if no message comes through."""
    first, second = network.device_data_ips[:2]
    with network_of(network.host_pid(0)):
        listener = socket.create_server((first, 0))
    with listener:
        listener.settimeout(TIMEOUT_S)
        with network_of(network.host_pid(1)):
            sender = socket.create_connection(listener.getsockname(), TIMEOUT_S, (second, 0))
        with sender:
            sender.sendall(MESSAGE)
            receiver, _ = listener.accept()
            with receiver:
                receiver.settimeout(TIMEOUT_S)
                if receiver.recv(len(MESSAGE), socket.MSG_WAITALL) != MESSAGE:
                    raise OSError("the message did not arrive whole")


if __name__ == "__main__":
    sys.exit(main())
