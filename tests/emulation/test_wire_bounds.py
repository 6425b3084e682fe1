"""What links of a star carry for each method, against the fewest and the most bytes that its messages can need."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import pandas as pd

from testbed.comm.frame import HEADER_BYTES
from testbed.comm.pacing import SEGMENT_HEADERS, SEGMENT_PAYLOAD
from testbed.config.fields import CONF
from tests.emulation.machine import ROOT, command, pytestmark

__all__ = ["pytestmark"]

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
STRAY_BYTES = 2000  # acknowledgements of the pass before, and what the common start took more or less than on average


def bounds(payload_bytes: int, messages: int) -> tuple[int, int]:
    """The fewest and the most bytes in one direction of the busiest link.

    Fewest: all messages fill their packets, and nothing is acknowledged on this link. Most: each message ends with a
    packet that is not full, its frame header has a packet of its own, it waited for an empty message (rendezvous), and
    as many packets are acknowledged one by one on this link as are sent over it.
    """
    framed = payload_bytes + messages * HEADER_BYTES
    full = math.ceil(framed / SEGMENT_PAYLOAD)
    packets = full + 3 * messages
    most = framed + messages * HEADER_BYTES + 2 * packets * SEGMENT_HEADERS + STRAY_BYTES
    return framed + full * SEGMENT_HEADERS, most


def test_every_method_puts_on_a_star_what_its_messages_need(tmp_path: Path) -> None:
    words = [f"methods=[{','.join(METHODS)}]", "devices=3", "bandwidths=100", "repeats=2", "network=mininet"]
    words += ["compute_mode=replay", "time_scale=1", "model.hidden=192", "tokens=100"]
    done = subprocess.run(command(tmp_path, *words), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = pd.read_csv(tmp_path / "latest" / "results.csv")
    assert set(rows.method) == set(METHODS) and (rows.status == "ok").all()
    assert (rows.foreign_bytes == 0).all(), rows.loc[rows.foreign_bytes != 0, ["method", "devices", "foreign_bytes"]]
    for row in rows[rows.devices > 1].to_dict(orient="records"):
        if row["method"] == "single":
            assert row["payload_bytes"] == 0 and row["wire_bytes"] < STRAY_BYTES
            continue
        least, most = bounds(row["payload_bytes"], row["messages"])
        assert least <= row["wire_bytes"] <= most, row
