"""Colors, markers and line styles: a method looks the same in every figure, in color and in gray.

The colors are Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), which people with any color vision can
distinguish. Related methods have a darker color of the same hue and another marker (megatron_sp and tensor, galaxy and
sequence, ring and block).
"""

from __future__ import annotations

from typing import Any

import pandas as pd

# Color, marker, and the index in _DASHES of a method's first variant; the next variants have the next dashes.
_METHODS: dict[str, tuple[str, str, int]] = {
    "single": ("#000000", "x", 0),
    "tensor": ("#D55E00", "s", 3),
    "megatron_sp": ("#8C2D04", "p", 2),
    "galaxy": ("#8B6914", "h", 1),
    "sequence": ("#E69F00", "D", 1),
    "ring": ("#CC79A7", "8", 3),
    "block": ("#882255", "<", 1),
    "prism": ("#999999", ">", 2),
    "pipeline": ("#009E73", "v", 2),
}
_OTHER = ("#666666", "P", 0)
_FURTHER = ("1", "2", "3", "4")  # markers of a method's fifth and later variants, four of each
# Variants of astra, from few groups to many: dark to light blue, so that the order is visible in gray too.
_BLUES, _ASTRA_MARKERS = ("#003F72", "#0072B2", "#56B4E9", "#8CC9EE"), ("o", "^", "d", "X", "s", "v", "p")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1, 1.5)))
# If variants of a method differ in their codec only, each codec has its dash, the same one in every method.
_CODEC_DASHES: dict[str, Any] = dict(zip(("fp32", "int8", "int4", "fp16"), _DASHES, strict=True))
_CODEC_DASHES["topk"] = (0, (5, 1.5, 1, 1.5, 1, 1.5))

# Parts of a latency, in the order in which they are stacked: name in the legend, color, hatch.
PARTS: dict[str, tuple[str, str, str]] = {
    "compute_ms": ("compute", "#0072B2", ""),
    "encode_ms": ("encode", "#CC79A7", "xxx"),
    "wire_ms": ("wire", "#E69F00", "///"),
    "wait_ms": ("wait for others", "#F0E442", "..."),
    "decode_ms": ("decode", "#009E73", "\\\\\\"),
    "other_ms": ("other", "#DDDDDD", ""),
}


def line_styles(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """label -> color, marker and linestyle. table: ``points``.

    Up to 20 variants of a method differ. Variants of astra have a color and a marker for each number of groups, and a
    dash for each variant with this number. With one number of groups, up to 28 variants differ, and the first seven
    have markers of their own.
    """
    styles: dict[str, dict[str, Any]] = {}
    for method, rows in table.groupby("method", sort=False):
        variants = rows.drop_duplicates("label").set_index("label")
        groups, codecs = list(variants["groups"].drop_duplicates()), variants["codec"]
        by_codec = len(codecs) > 1 and codecs.is_unique and codecs.isin(_CODEC_DASHES).all()
        for index, (label, variant) in enumerate(variants.iterrows()):
            if method == "astra" and len(groups) > 1:
                alike = variants.index[variants["groups"] == variant["groups"]]
                shade, dash = groups.index(variant["groups"]), list(alike).index(label)
                color, marker = _BLUES[shade % len(_BLUES)], _ASTRA_MARKERS[shade % len(_ASTRA_MARKERS)]
            elif method == "astra":
                color, marker = _BLUES[index % len(_BLUES)], _ASTRA_MARKERS[index % len(_ASTRA_MARKERS)]
                dash = index // len(_BLUES)
            else:
                color, marker, first_dash = _METHODS.get(str(method), _OTHER)
                if not by_codec:
                    marker = (marker, *_FURTHER)[index // len(_DASHES) % (1 + len(_FURTHER))]
                dash = first_dash + index
            line = _CODEC_DASHES[variant["codec"]] if by_codec else _DASHES[dash % len(_DASHES)]
            styles[str(label)] = {"color": color, "marker": marker, "linestyle": line}
    return styles
