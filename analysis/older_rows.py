"""Rows that earlier versions wrote, in today's words: names of columns, and names that stand in their cells.

Only until the kept rows (docs/measured, notebooks/sample) are measured again; then this module goes.
"""

from __future__ import annotations

import re

import pandas as pd

COLUMNS = {
    "speedups": "optimizations",
    "speedups_used": "optimizations_resolved",
    "shares": "partition",
    "collective": "all_gather",
    "free_burst_bytes": "burst_credit_bytes",
    "levels": "num_quantizers",
    "rotation": "pre_rotation",
    "anchors": "anchor_tokens",
    "quantised": "quantized",
}
VALUES = {
    "experiment": {"unequal_devices": "heterogeneous_devices"},
    "all_gather": {"at_once": "direct"},
    "pre_rotation": {"components": "pca"},
    "gradient": {"rotation": "rotation_trick"},
    "quantized": {"normalised": "normalized"},
    "stage": {"original": "uncompressed"},
    "data": {"pictures": "image_folder"},
}
OPTIMIZATIONS = {r"\btables\b": "lut", r"\bcodewords\b": "dedup", r"\bsplit(?=\d)": "chunks"}
SETTINGS = {
    r"\blevels=": "num_quantizers=",
    r"\brotation=components\b": "pre_rotation=pca",
    r"\banchors=": "anchor_tokens=",
    r"\bquantised=": "quantized=",
    r"=normalised\b": "=normalized",
    r"(?<!\w)segments=": "segment_means=",
}


def in_todays_words(raw: pd.DataFrame) -> pd.DataFrame:
    """The same rows; those of today's version are returned as they are."""
    renamed = {old: new for old, new in COLUMNS.items() if old in raw.columns and new not in raw.columns}
    if not renamed and not (raw.get("stage", pd.Series(dtype=object)) == "original").any():
        return raw
    rows = raw.rename(columns=renamed)
    for column, names in VALUES.items():
        if column in rows:
            rows[column] = rows[column].replace(names)
    for columns, patterns in (
        (("optimizations", "optimizations_resolved"), OPTIMIZATIONS),
        (("settings",), SETTINGS),
    ):
        for column in columns:
            if column in rows:
                rows[column] = rows[column].map(lambda cell, words=patterns: _replaced(cell, words))
    return rows


def _replaced(cell: object, patterns: dict[str, str]) -> object:
    """A text cell with each pattern replaced; settings stay in the order of their names."""
    if not isinstance(cell, str):
        return cell
    for pattern, word in patterns.items():
        cell = re.sub(pattern, word, cell)
    return ",".join(sorted(cell.split(","))) if "=" in cell else cell
