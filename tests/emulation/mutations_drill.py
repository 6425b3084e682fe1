"""Run by a test: one point, measured while something is wrong with the instrument. Prints a line of JSON for each."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from experiments.measurement.cluster_bench import ClusterBench
from experiments.measurement.vit_inputs import prepare_vit_inputs
from testbed.config.load import load_config
from testbed.config.schema import LatencyConfig
from testbed.grid import points
from testbed.network.link_watch import LinkWatch
from testbed.network.mininet import MininetNetwork
from testbed.network.mininet_nodes import enter
from testbed.network.qdisc import network_of
from testbed.network.sandbox import inside, supervise
from testbed.session import Session
from topologies.link_graph import Hop

DEVICES, MBPS = 3, 10.0
# A pass is 0.7 s of full links: for each of 4 layers two messages of 100 KB.
MODEL = ["model.layers=4", "model.hidden=384", "model.heads=12", "tokens=200"]
WORDS = ["+experiment=smoke", *MODEL, "methods=sequence", f"devices={DEVICES}", f"bandwidths={MBPS}", "time_scale=1"]
WORDS += ["compute_mode=replay", "network=mininet", "repeats=2"]
COLUMNS = [
    "fidelity",
    "fidelity_note",
    "foreign_cpu_pct",
    "throttled_ms",
    "foreign_bytes",
    "link_rate_error_pct",
    "link_burst_bytes",
]
COLUMNS += ["retransmits", "out_of_order", "wire_bytes", "latency_ms", "status"]
PORT, UPLINK = ("d0", "h1"), ("h0", "d0")  # a switch's end of a link, and a host's
SENDERS, REPEATS, SENT_BYTES = DEVICES - 1, 8, 10_000


def main(names: list[str]) -> int:
    """Measure the point once for each name, then an incast over a port as it should be and over a port that is not."""
    if not inside():
        return supervise(names, "mininet", module="tests.emulation.mutations_drill")
    config = load_config(WORDS)
    assert isinstance(config, LatencyConfig)
    grid = points(config)
    assets = prepare_vit_inputs(config, grid)
    with ClusterBench(config, "mininet", DEVICES, assets, grid, ["replay"]) as bench:
        bench.measure(grid[0])  # loads the model and verifies the method
        for name in names:
            try:
                with MUTATIONS[name](bench.session):
                    rows = bench.measure(grid[0])
            except subprocess.CalledProcessError as error:
                say({"name": name, "impossible": " ".join(error.stderr.split())})
                continue
            say({"name": name, "rows": [{column: row[column] for column in COLUMNS} for row in rows]})
        say({"name": "incast", **incast(bench.session)})
    return 0


def say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


def network_of_session(session: Session) -> MininetNetwork:
    assert isinstance(session.network, MininetNetwork)
    return session.network


def run(words: str, pid: int | None = None) -> None:
    """Run a command, in the network namespace of a process."""
    entering = [] if pid is None else enter(pid)
    subprocess.run([*entering, *words.split()], check=True, capture_output=True, text=True)


def reshape(network: MininetNetwork, hop: Hop, rate: float = 1.0, bucket: float = 1.0) -> None:
    """Give a hop's token bucket other parts of the rate and size that it should have."""
    right = network.token_buckets[hop]
    settings = f"rate {round(8 * rate * right.bytes_per_s)}bit burst {round(bucket * right.size_bytes)}b limit 1000000b"
    pid = network.host_pid(int(hop[0][1:])) if hop[0].startswith("h") else None
    run(f"tc qdisc change dev {'-'.join(hop)} root handle 1: tbf {settings}", pid)


@contextmanager
def nothing(session: Session) -> Iterator[None]:
    yield


@contextmanager
def behind_its_back(session: Session, change: Callable[[], None]) -> Iterator[None]:
    """Let ``change`` happen after the links are shaped, before the first pass."""
    original = session._start_bytes

    def changed() -> Any:
        change()
        return original()

    with patch.object(session, "_start_bytes", changed):
        yield


@contextmanager
def slow_port(session: Session) -> Iterator[None]:
    """A link 5% slower behind its back."""
    network = network_of_session(session)
    with behind_its_back(session, lambda: reshape(network, PORT, rate=0.95)):
        yield


@contextmanager
def free_burst(session: Session) -> Iterator[None]:
    """The receiver's port has a bucket of 20 ms of the link."""
    network = network_of_session(session)
    with behind_its_back(session, lambda: reshape(network, PORT, bucket=4)):
        yield


@contextmanager
def double_bucket(session: Session) -> Iterator[None]:
    """A shaper that makes a bucket twice as large as it says, so that settings before and after are the same."""
    network = network_of_session(session)
    original = network.shape

    def shape(*arguments: Any) -> None:
        original(*arguments)
        reshape(network, UPLINK, bucket=2)

    with patch.object(network, "shape", shape):
        yield


@contextmanager
def stolen_core(session: Session) -> Iterator[None]:
    """The test takes processor time between these two lines."""
    say({"name": "steal"})
    sys.stdin.readline()
    yield


@contextmanager
def disorder(session: Session) -> Iterator[None]:
    """Of the packets to a host, those of every other 4096 bytes take a way that is slower than the link."""
    host, inward = network_of_session(session).host_pid(1), "h1-d0"
    with ExitStack() as undo:
        run("ip link add late type ifb", host)
        undo.callback(run, "ip link del late", host)
        run("ip link set late up", host)
        run(f"tc qdisc add dev late root tbf rate {round(0.6e6 * MBPS)}bit burst 1600b limit 1000000b", host)
        run(f"tc qdisc add dev {inward} ingress", host)
        undo.callback(run, f"tc qdisc del dev {inward} ingress", host)
        bit = "match u32 0x00001000 0x00001000 at 24"  # of the sequence number, behind an IP header without options
        action = "action mirred egress redirect dev late"
        run(f"tc filter add dev {inward} parent ffff: protocol ip prio 1 u32 {bit} {action}", host)
        yield


@contextmanager
def foreign_packets(session: Session) -> Iterator[None]:
    """A stranger sends a datagram over a data link now and then."""
    import socket

    network, ended = network_of_session(session), threading.Event()

    def send() -> None:
        with network_of(network.host_pid(2)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            while not ended.wait(0.1):
                stranger.sendto(bytes(500), (network.device_data_ips[1], 9))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


MUTATIONS: dict[str, Callable[[Session], Any]] = {
    "nothing": nothing,
    "slow port": slow_port,
    "free burst": free_burst,
    "double bucket": double_bucket,
    "stolen core": stolen_core,
    "disorder": disorder,
    "foreign packets": foreign_packets,
}


def incast(session: Session) -> dict[str, float]:
    """The largest burst on the receiver's port, in buckets, while all others send to it at once."""
    network, port = network_of_session(session), ("d0", "h0")
    session.time_scale = 1.0
    found = {}
    for name, bucket in (("as set", 1.0), ("four times", 4.0)):
        session.shape(MBPS)
        reshape(network, port, bucket=bucket)
        with LinkWatch(network.link_counters, {port: network.token_buckets[port]}) as watch:
            session.rank_times("incast_all", SENT_BYTES, REPEATS)
            time.sleep(0.05)
        found[name] = watch.hops[port].burst_bytes / network.token_buckets[port].size_bytes
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
