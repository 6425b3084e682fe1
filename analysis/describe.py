"""How a run was made, in words. All tables, figures and reports take these words from here."""

from __future__ import annotations

from typing import Any

import pandas as pd

from testbed.results.schema import ANALYTIC

NETWORK = {
    "mininet": "network mininet: real TCP/IP of this kernel over shaped links between emulated hosts on one machine",
    "loopback": "network loopback: the transport paces messages, no kernel shapes them: not a network measurement",
    "analytic": "network analytic: transfer times are bits divided by bandwidth; nothing was sent",
    "cluster": "network cluster: the hosts and the network of an existing Ray cluster",
}
COMPUTE = {
    "execute": "compute execute: real arithmetic at the speed of this machine",
    "hold": "compute hold: real arithmetic, then a wait until the emulated compute time is over",
    "replay": "compute replay: emulated compute times replace arithmetic; bytes, packets and waiting are real",
    "analytic": "compute analytic: emulated compute times are added up; nothing was run",
}
MODEL = "by the cost model: nothing was measured"
METRICS = {"accuracy_pct": "accuracy (%)", "perplexity": "perplexity"}
LOWER_IS_BETTER = frozenset({"perplexity"})
FLOAT_BITS = 32


def values(frame: pd.DataFrame, column: str) -> list[Any]:
    """The distinct values of a column, sorted, without missing ones; [] if rows of this kind have no such column."""
    if column not in frame:
        return []
    present = frame[column].replace("", None).dropna().unique()
    return sorted(present.tolist())


def joined(frame: pd.DataFrame, column: str, pattern: str = "{}") -> str:
    """Distinct values as text: ``2/4 devices``; "" if the column has none. pattern: where {} stands for the values."""
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values(frame, column)]
    return pattern.format("/".join(texts)) if texts else ""


def metric(frame: pd.DataFrame) -> str:
    """The metric of accuracy rows, in words."""
    return "/".join(METRICS.get(str(name), str(name)) for name in values(frame, "metric"))


def metric_sign(frame: pd.DataFrame) -> int:
    """1 if a higher value of the metric is better, -1 if a lower one is."""
    return -1 if values(frame, "metric") and set(values(frame, "metric")) <= LOWER_IS_BETTER else 1


def by_corpus(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """One frame for each text that a model was evaluated on; the frame itself if its rows have no such column."""
    if "corpus" not in frame:
        return [frame]
    return [part for _, part in frame.groupby("corpus", sort=False)]


def evaluated_on(frame: pd.DataFrame) -> str:
    """Model, data and number of examples of accuracy rows."""
    return f"{joined(frame, 'model')} on {data_of(frame)}, {joined(frame, 'examples', '{} examples')}"


def sizes_of(frame: pd.DataFrame) -> str:
    """Width and tokens of the model of accuracy rows."""
    hidden = (frame["compression"] * frame["bits_per_token"] / FLOAT_BITS).round().median()
    return ", ".join(filter(None, [f"D={hidden:g}", joined(frame, "tokens", "{} tokens")]))


def data_of(frame: pd.DataFrame) -> str:
    """Data of accuracy rows and, if it is another one, the text that the model was evaluated on."""
    return " ".join(dict.fromkeys(filter(None, [joined(frame, "data"), joined(frame, "corpus")])))


def setting(frame: pd.DataFrame) -> str:
    """Model, tokens, devices and links of these rows on one line."""
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
    """What was real and what was emulated: a line for each network backend and compute mode, one for time scales."""
    lines = [NETWORK.get(name, name) for name in map(str, values(frame, "network"))]
    profile = joined(frame, "device_profile", " (device profile {})")
    for name in map(str, values(frame, "compute_mode")):
        lines.append(COMPUTE.get(name, name) + (profile if name != "execute" else ""))
    scales = values(frame, "time_scale")
    if scales and scales != [1]:
        each = "each point ran this many times slower (faster below 1)"
        ran = each if len(scales) > 1 else f"everything ran {_slower(scales[0])}"
        lines.append(f"time scale {_range(scales)}: {ran}, links and computation alike; results are divided by it")
    return lines


def _range(scales: list[float]) -> str:
    """``4``, or ``0.25 to 16``."""
    return f"{scales[0]:g}" if len(scales) == 1 else f"{scales[0]:g} to {scales[-1]:g}"


def _slower(scale: float) -> str:
    """``8 times slower``, ``4 times faster``."""
    return f"{scale:g} times slower" if scale > 1 else f"{1 / scale:g} times faster"


def short_modes(frame: pd.DataFrame) -> str:
    """The same for a caption: ``network mininet, compute replay (device profile gtx1660ti), time scale 1``."""
    scales = values(frame, "time_scale")
    parts = [
        joined(frame, "network", "network {}"),
        joined(frame, "compute_mode", "compute {}") + joined(frame, "device_profile", " (device profile {})"),
        f"time scale {_range(scales)}" if scales else "",
    ]
    return ", ".join(part for part in parts if part)


def is_analytic(frame: pd.DataFrame) -> bool:
    """Whether all rows are from the cost model, so that nothing was measured."""
    return values(frame, "compute_mode") == [ANALYTIC]


def statistic(frame: pd.DataFrame) -> str:
    """What a number of a table or a marker of a figure shows."""
    return MODEL if is_analytic(frame) else "median over repeats"


_DISTURBANCES = {"delay_ms": "link delay {} ms", "loss_pct": "packet loss {}%"}
