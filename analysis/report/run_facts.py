"""Facts about a run from its manifest: how it was made, and the calibration of its links and cores."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from analysis.describe import is_analytic, joined, modes, setting
from analysis.load import fact
from analysis.runs import Run
from analysis.text_table import TextTable, signed_pct

SHORT_SHA = 12


def facts(run: Run) -> list[tuple[str, str]]:
    """(name, value) pairs about a run, from its rows and, if there is one, from its manifest."""
    frame = run.frame
    degraded = (frame["fidelity"] == "degraded").sum() if "fidelity" in frame else 0
    ok, lost = (frame["status"] == "ok").sum(), (frame["status"] != "ok").sum()
    count = f"{len(frame)}: {ok} with a result" + (f", {degraded} of these degraded" if degraded else "")
    lines = [("experiment", run.experiment), ("setting", setting(frame))]
    for entry in run.entries[-1:]:
        made = "computed" if is_analytic(frame) else "measured"
        lines += [("command", _command(entry)), (made, _when(entry)), ("revision", _revision(entry))]
        lines += [("machine", _machine(entry)), ("software", _software(entry))]
    if len(run.entries) > 1:
        lines.append(("runs", f"{len(run.entries)} runs wrote these rows; the last one is described here"))
    if not run.entries:
        lines.append(("manifest", "missing or damaged: command, date, revision and machine are unknown"))
    lines += [("conditions", line) for line in modes(frame)]
    lines.append(("rows", count + (f", {lost} without a result" if lost else "")))
    lines.append(("signature", joined(frame, "signature")))
    return [(name, value) for name, value in lines if value]


def _command(entry: Mapping[str, Any]) -> str:
    words = entry.get("argv")
    if not isinstance(words, list):
        return ""
    kept = [fact({"word": word}, "word") for word in words if not str(word).startswith("network.backend=")]
    return "python -m testbed.run " + " ".join(map(shlex.quote, kept))


def _when(entry: Mapping[str, Any]) -> str:
    started, ended = fact(entry, "started"), fact(entry, "last_written") or fact(entry, "ended")
    return f"{started} to {ended}" if ended else started


def _revision(entry: Mapping[str, Any]) -> str:
    sha = fact(entry, "git_sha")
    changed = fact(entry, "git_dirty_hash")
    text = sha[:SHORT_SHA] + (f" with uncommitted changes ({changed})" if changed else "") if sha else "unknown"
    code = fact(entry, "measurement_hash")
    return text + (f", measurement hash {code}" if code else "")


def _machine(entry: Mapping[str, Any]) -> str:
    cores = fact(entry, "cores")
    return ", ".join(filter(None, [fact(entry, "cpu"), f"{cores} cores" if cores else "", fact(entry, "kernel")]))


def _software(entry: Mapping[str, Any]) -> str:
    packages = entry.get("packages")
    names = sorted(packages) if isinstance(packages, Mapping) else []
    python = fact(entry, "python")
    versions = [f"{name} {fact(entry, 'packages', str(name))}" for name in names]
    return ", ".join([*([f"Python {python}"] if python else []), *versions])


def calibration_table(run: Run) -> TextTable:
    """The calibration before the first point and after the last one, for each cluster in the manifest of a run.

    Columns: cluster, error of the link rate in percent for each rate in Mbps, message overhead in ms, busy cores in
    percent, and unexpected bytes. No rows if the manifest has no calibration.
    """
    found = list(_calibrations(run))
    rates = sorted({rate for _, _, of in found for rate in _errors(of)})
    rows = []
    for devices, when, of in found:
        errors = _errors(of)
        overhead, busy = of.get("message_overhead_s"), of.get("busy_pct")
        rows.append(
            [
                f"{devices} devices, {when}",
                *(signed_pct(errors.get(rate, float("nan"))) for rate in rates),
                f"{1e3 * overhead:.2f}" if isinstance(overhead, int | float) else "-",
                f"{busy:.0f}%" if isinstance(busy, int | float) else "-",
                fact(of, "idle_bytes") or "-",
            ]
        )
    notes = [
        "Mbps: rate on this machine (the emulated rate divided by the time scale); error of the worst link, with "
        "traffic in both directions",
        "message: time of an exchange of 320 B between all devices, beyond bits divided by the rate",
        "busy: cores while the cluster is idle; unexpected: bytes on the data network while no device sends",
    ]
    columns = ["cluster", *(f"{rate:g} Mbps" for rate in rates), "message, ms", "busy", "unexpected, bytes"]
    return TextTable("Calibration of links and cores", columns, rows, notes)


def _calibrations(run: Run) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(devices, when, calibration) of every entry of the manifest that has the form of a calibration."""
    for entry in run.entries:
        clusters = entry.get("clusters")
        for cluster in clusters if isinstance(clusters, list) else []:
            measured = cluster.get("calibration") if isinstance(cluster, Mapping) else None
            for number, of in enumerate(measured if isinstance(measured, list) else []):
                if isinstance(of, Mapping):
                    yield fact(cluster, "devices"), "after the last point" if number else "before the first point", of


def _errors(of: Mapping[str, Any]) -> dict[float, float]:
    """Rate in Mbps by the clock of this machine -> error in percent."""
    errors, scale = of.get("rate_error_pct"), of.get("time_scale", 1)  # older manifests have Mbps by the emulated clock
    if not isinstance(errors, Mapping) or not _is_number(scale) or not float(scale) > 0:
        return {}
    pairs = ((rate, value) for rate, value in errors.items() if _is_number(rate) and isinstance(value, int | float))
    return {float(rate) / float(scale): value for rate, value in pairs}


def _is_number(text: Any) -> bool:
    try:
        return math.isfinite(float(text))
    except (TypeError, ValueError):
        return False
