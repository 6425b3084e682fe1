"""Made-up rows of an accuracy experiment. Nothing here was measured."""

from __future__ import annotations

from typing import Any

import pandas as pd

from testbed.results.schema import ACCURACY


def quality_row(stage: str = "trained", groups: int = 1, devices: int = 4, **changes: Any) -> dict[str, Any]:
    """One good row; ``changes`` replace any column."""
    uncompressed, bits = stage == "uncompressed", 10 * groups if stage != "uncompressed" else 32 * 96
    value = 90.0 if uncompressed else {"k-means": 80.0, "trained": 88.0}[stage] + groups / 32
    return {
        **{"experiment": "accuracy_vit", "signature": "0", "attempt": 0, "kept_because": "only attempt"},
        **{"model": "vit_tiny", "data": "fashion_mnist"},
        **{"corpus": "", "tokens": 49, "quantized": "", "anchor_tokens": 0, "int8_tokens": 0},
        **{"num_quantizers": 0 if uncompressed else 1, "pre_rotation": "" if uncompressed else "none"},
        **{"gradient": "straight_through" if stage == "trained" else ""},
        **{"metric": "accuracy_pct", "stage": stage, "groups": 0 if uncompressed else groups},
        **{"codebook_size": 0 if uncompressed else 1024, "bits_per_token": bits, "compression": 32 * 96 / bits},
        **{"noise": 0.0, "commitment": 0.0 if stage != "trained" else 2e-4},
        **{"class_tokens": "" if uncompressed else "distributed", "objective": "labels" if stage == "trained" else ""},
        **{"trained_on": "4" if stage == "trained" else "", "devices": 1 if uncompressed else devices, "seed": 0},
        **{"examples": 10_000, "value": value, "value_low": value - 0.6, "value_high": value + 0.6},
        **{"change": value - 90.0, "change_low": value - 90.4, "change_high": value - 89.6},
        **{"train_s": 60.0, "train_examples": 12_800, "train_device": "cpu", "status": "ok", "error": ""},
    } | changes


def quality(worse: float = 0.0, **changes: Any) -> pd.DataFrame:
    """Uncompressed baseline, and k-means and fine-tuned codebooks with G = 1 and 8 on 4 devices.

    worse: subtracted from the values of fine-tuned codebooks.
    """
    rows = [quality_row("uncompressed", **changes)]
    for groups in (1, 8):
        rows.append(quality_row("k-means", groups, **changes))
        made = quality_row("trained", groups, **changes)
        rows.append(made | {name: made[name] - worse for name in ("value", "value_low", "value_high", "change")})
    return pd.DataFrame(rows, columns=list(ACCURACY.columns))
