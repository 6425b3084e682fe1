"""Several topologies on real hosts: messages take the computed routes, and methods give the same results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

from tests.emulation.machine import ROOT, command, pytestmark

__all__ = ["pytestmark"]

NAMES = {"ring": "ring", "mesh": "direct", "two_tier": "hierarchical"}
HEADERS = 1.046  # of full packets
CONTROL_BYTES = 4000  # on a link, of acknowledgements and of lining up


def test_each_link_carries_what_the_model_says() -> None:
    drill = subprocess.run(
        [sys.executable, "-m", "tests.emulation.links_drill", *NAMES], cwd=ROOT, capture_output=True, text=True
    )
    assert drill.returncode == 0, drill.stdout[-2000:] + drill.stderr[-2000:]
    found = [json.loads(line) for line in drill.stdout.splitlines()]
    assert {each["topology"]: each["all_gather"] for each in found} == NAMES
    for each in found:
        assert each["idle"] == 0
        for hop, (carried, payload) in each["carried"].items():
            acknowledged = 0.06 * each["carried"]["-".join(reversed(hop.split("-")))][1]
            assert HEADERS * payload <= carried <= 1.01 * HEADERS * payload + acknowledged + CONTROL_BYTES, hop
        # No faster than the links, not even for messages that fit the bucket of a shared trunk.
        assert each["seconds"] > each["ideal_s"] and each["small_seconds"] > each["small_ideal_s"]
        # Hundreds if several cores received packets. The manifest says if the kernel cannot prevent that.
        assert each["reordered"] == 0 or each["in_order"].startswith("not kept")
        # Data and acknowledgements: segments of up to 7 packets, which no link on the route splits.
        assert each["packets_per_segment"] > 2
    long_queue, short_queue = found[-1]["dropped"]
    assert short_queue > long_queue == 0


def test_methods_are_right_on_a_ring(tmp_path: Path) -> None:
    words = ["topology=ring", "devices=4", "bandwidths=100", "repeats=1", "network=mininet", "compute_mode=replay"]
    done = subprocess.run(
        command(tmp_path, *words, "methods=[sequence,tensor,astra]"), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = pd.read_csv(tmp_path / "latest" / "results.csv")
    assert (rows.status == "ok").all() and rows.verified.all()
    assert (rows.payload_bytes == rows.formula_bytes).all()
    assert set(rows.topology) == set(rows.all_gather) == {"ring"}
