"""The counters of queues, read over netlink from a real kernel, are those that tc shows."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys

import pytest

from testbed.network.qdisc import ERROR, MESSAGE, QdiscCounters, answers
from testbed.network.sandbox import needs_user_namespace, refusal, tool_path, unshare

# In a network namespace of its own: a shaped link of which one end is in another namespace, and bytes that wait.
SCRIPT = """
import json, os, signal, socket, subprocess, time
from testbed.network.qdisc import QdiscReader

def run(words):
    return subprocess.run(words.split(), check=True, capture_output=True, text=True).stdout

other = subprocess.Popen(["unshare", "--net", "sleep", "60"])
time.sleep(0.3)
run("ip link set lo up")
run("ip link add near type veth peer name far")
run(f"ip link set far netns {other.pid}")
enter = f"nsenter --target {other.pid} --net "
for prefix, name, address in (("", "near", "10.9.0.1"), (enter, "far", "10.9.0.2")):
    run(f"{prefix}ip address add {address}/24 dev {name}")
    run(f"{prefix}ip link set {name} up")
reader = QdiscReader([(None, {("a", "b"): "near"}), (other.pid, {("b", "a"): "far"})])
unshaped = reader.read().counters["a", "b"]
for prefix, name in (("", "near"), (enter, "far")):
    run(f"{prefix}tc qdisc replace dev {name} root handle 1: tbf rate 80kbit burst 2000b limit 8000b")
idle = reader.read()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for _ in range(20):
        sender.sendto(bytes(1000), ("10.9.0.2", 9))
time.sleep(0.2)
reading = reader.read()
shown = {e["dev"]: e for e in json.loads(run("tc -s -j qdisc show")) if e.get("root")}["near"]
later = reader.read()
run("tc qdisc change dev near root handle 1: tbf rate 81kbit burst 2000b limit 8000b")
changed = reader.read()
reader.close()
other.kill()
near = ("a", "b")
print(json.dumps({
    "unshaped": list(unshaped[:4]),
    "between": [list(r.counters[near][:4]) for r in (reading, later)],
    "shown": [shown["bytes"], shown["packets"], shown["backlog"], shown["drops"]],
    "far": reading.counters["b", "a"].bytes,
    "span_s": reading.after_s - reading.before_s,
    "same": idle.counters[near].options == later.counters[near].options,
    "differs": later.counters[near].options != changed.counters[near].options,
}))
"""


@pytest.mark.skipif(bool(refusal(needs_user_namespace())), reason="no network namespace")
def test_netlink_and_tc_say_the_same() -> None:
    command = [*unshare(needs_user_namespace()), sys.executable, "-c", SCRIPT]
    environment = {**os.environ, "PATH": tool_path()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["unshaped"] == [0, 0, 0, 0]
    before, after = found["between"]
    assert all(low <= shown <= high for low, shown, high in zip(before[:2], found["shown"][:2], after[:2], strict=True))
    assert after[2] <= found["shown"][2] <= before[2] and before[2] > 1000  # bytes wait, and leave
    assert before[3] == found["shown"][3] == after[3] > 0
    assert found["far"] < before[0]
    assert found["span_s"] < 0.05
    assert found["same"] and found["differs"]


def test_answers_are_taken_apart_whatever_comes_with_them() -> None:
    def attribute(kind: int, payload: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)

    statistics = attribute(1, struct.pack("=QIxxxx", 1 << 40, 7))
    statistics += attribute(3, struct.pack("=IIIII", 2, 3000, 5, 0, 9))
    described = bytes(20) + attribute(1, b"tbf\0") + attribute(2, b"abc") + attribute(0x8007, statistics)
    good = MESSAGE.pack(MESSAGE.size + len(described), 36, 0, 4, 0) + described
    refused = MESSAGE.pack(MESSAGE.size + 20, ERROR, 0, 5, 0) + bytes(20)
    assert list(answers(good + refused)) == [(4, QdiscCounters(1 << 40, 7, 3000, 5, b"abc")), (5, QdiscCounters())]
    assert list(answers(b"short")) == []
