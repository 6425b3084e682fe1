"""How a run was made, in words.

Tables, figures and reports take these from here, so that none of them forgets to say it.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from testbed.results.schema import ANALYTIC

NETWORK = {
    "mininet": "network mininet: real TCP/IP stack of this kernel, shaped links between emulated hosts on one machine",
    "loopback": "network loopback: links paced in the transport, not by a kernel: not a network measurement",
    "analytic": "network analytic: bits divided by bandwidth, nothing was sent",
    "cluster": "network cluster: the hosts and the network of an existing Ray cluster",
}
COMPUTE = {
    "execute": "compute execute: arithmetic as fast as this machine does it",
    "hold": "compute hold: real arithmetic, then a wait until the device profile's time slot is over",
    "replay": "compute replay: arithmetic replaced by the device profile's slots; bytes, packets and waiting are real",
    "analytic": "compute analytic: multiply-accumulates divided by the device profile's speed, nothing was run",
}
MODEL = "by the cost model: nothing was measured"
METRICS = {"accuracy_pct": "accuracy (%)", "perplexity": "perplexity"}
LESS_IS_BETTER = frozenset({"perplexity"})
FLOAT_BITS = 32


def values(frame: pd.DataFrame, column: str) -> list[Any]:
    """The distinct values of a column that are there, sorted; none if rows of this kind have no such column."""
    if column not in frame:
        return []
    present = frame[column].replace("", None).dropna().unique()
    return sorted(present.tolist())


def joined(frame: pd.DataFrame, column: str, pattern: str = "{}") -> str:
    """Distinct values as text: ``2/4 devices``. Empty if the column has none."""
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values(frame, column)]
    return pattern.format("/".join(texts)) if texts else ""


def metric(frame: pd.DataFrame) -> str:
    """What rows of quality are a figure of."""
    return "/".join(METRICS.get(str(name), str(name)) for name in values(frame, "metric"))


def better_up(frame: pd.DataFrame) -> int:
    """1 where more of the metric is better, -1 where less is."""
    return -1 if values(frame, "metric") and set(values(frame, "metric")) <= LESS_IS_BETTER else 1


def by_corpus(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows of quality, apart for each text that a model was judged on; one part where there is no such column."""
    if "corpus" not in frame:
        return [frame]
    return [part for _, part in frame.groupby("corpus", sort=False)]


def judged_on(frame: pd.DataFrame) -> str:
    """Model, data and number of examples of rows of quality."""
    return f"{joined(frame, 'model')} on {data_of(frame)}, {joined(frame, 'examples', '{} examples')}"


def sizes_of(frame: pd.DataFrame) -> str:
    """What rows of quality tell of a model's sizes: width and tokens."""
    hidden = (frame["compression"] * frame["bits_per_token"] / FLOAT_BITS).round().median()
    return ", ".join(filter(None, [f"D={hidden:g}", joined(frame, "tokens", "{} tokens")]))


def data_of(frame: pd.DataFrame) -> str:
    """Data and, where it is another, corpus of rows of quality."""
    return " ".join(dict.fromkeys(filter(None, [joined(frame, "data"), joined(frame, "corpus")])))


def setting(frame: pd.DataFrame) -> str:
    """Model, input, devices and links of a run on one line."""
    parallel = frame[frame["method"] != "single"] if "method" in frame else frame
    parts = [
        joined(frame, "model"),
        joined(frame, "layers", "{} layers"),
        joined(frame, "hidden", "D = {}"),
        joined(frame, "tokens", "{} tokens"),
        joined(parallel, "devices", "{} devices"),
        joined(parallel, "topology"),
    ]
    for name, text in _DISTURBANCES.items():
        parts.append(joined(frame[frame[name] > 0], name, text) if name in frame else "")
    return ", ".join(part for part in parts if part)


def modes(frame: pd.DataFrame) -> list[str]:
    """What was real and what was not: one line for each network backend, compute mode and time scale in the frame."""
    lines = [NETWORK.get(name, name) for name in map(str, values(frame, "network"))]
    profile = joined(frame, "device_profile", " (device profile {})")
    for name in map(str, values(frame, "compute_mode")):
        lines.append(COMPUTE.get(name, name) + (profile if name != "execute" else ""))
    scales = values(frame, "time_scale")
    if scales and scales != [1]:
        of, slower = (" of the points", "so many times slower") if len(scales) > 1 else ("", _slower(scales[0]))
        lines.append(f"time scale{of} {_range(scales)}: run {slower}, links and slots alike; results divided by it")
    return lines


def _range(scales: list[float]) -> str:
    """``4``, or ``0.25 to 16``."""
    return f"{scales[0]:g}" if len(scales) == 1 else f"{scales[0]:g} to {scales[-1]:g}"


def _slower(scale: float) -> str:
    """``8 times slower``, ``4 times faster``."""
    return f"{scale:g} times slower" if scale > 1 else f"{1 / scale:g} times faster"


def short_modes(frame: pd.DataFrame) -> str:
    """The same for a figure's caption: ``network mininet, compute replay (gtx1660ti), time scale 1``."""
    scales = values(frame, "time_scale")
    parts = [
        joined(frame, "network", "network {}"),
        joined(frame, "compute_mode", "compute {}") + joined(frame, "device_profile", " (device profile {})"),
        f"time scale {_range(scales)}" if scales else "",
    ]
    return ", ".join(part for part in parts if part)


def is_analytic(frame: pd.DataFrame) -> bool:
    """Whether all rows with a result come from the cost model; then nothing in them was measured."""
    return values(frame, "compute_mode") == [ANALYTIC]


def statistic(frame: pd.DataFrame) -> str:
    """What one number of a table is, or one marker of a figure."""
    return MODEL if is_analytic(frame) else "median over repeats"


_DISTURBANCES = {"delay_ms": "link delay {} ms", "loss_pct": "packet loss {}%"}
