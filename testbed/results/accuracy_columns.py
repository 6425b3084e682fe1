"""Columns of an accuracy row: one compressed model on one number of devices, compared with the baseline."""

from __future__ import annotations

from testbed.results.column import COUNT, NUMBER, STAMPED, STATUS, TEXT, Column

COLUMNS = (
    *STAMPED,
    Column("model", TEXT, "name of the model", always=True),
    Column("data", TEXT, "name of the data set", always=True),
    Column("corpus", TEXT, "text on which a decoder is evaluated; empty for images", key=True),
    Column("tokens", COUNT, "tokens of one example"),
    Column("metric", TEXT, "`accuracy_pct` or `perplexity`", always=True, needed=True),
    Column(
        "stage", TEXT, "`uncompressed`, `k-means` (codebooks alone) or `trained` (fine-tuned)", key=True, needed=True
    ),
    Column("groups", COUNT, "codebooks per token (G)", key=True, needed=True),
    Column("codebook_size", COUNT, "codewords per codebook (K)", key=True, needed=True),
    Column("num_quantizers", COUNT, "stages of residual vector quantization", key=True, only_choice=1),
    Column("pre_rotation", TEXT, "rotation before quantization: `none` or `pca`", key=True, only_choice="none"),
    Column("quantized", TEXT, "what is quantized: `residual`, `normalized` or `keys_values`", key=True),
    Column("anchor_tokens", COUNT, "first tokens of a prompt that every device has at full precision", key=True),
    Column("int8_tokens", COUNT, "tokens of each device that are also sent in int8", key=True, only_choice=0),
    Column("bits_per_token", NUMBER, "bits that are sent for a token in each layer", "bits", always=True),
    Column("compression", NUMBER, "bits of a token in fp32 over `bits_per_token`", "ratio", always=True),
    Column("noise", NUMBER, "weight of NAVQ's noise (lambda)", key=True),
    Column("commitment", NUMBER, "weight of the commitment loss (beta)", key=True),
    Column(
        "gradient",
        TEXT,
        "gradient through quantization: `straight_through` or `rotation_trick`",
        key=True,
        only_choice="straight_through",
    ),
    Column("class_tokens", TEXT, "`distributed` (a copy on each device) or `single`", key=True),
    Column("objective", TEXT, "`labels` or `distill`", key=True),
    Column("trained_on", TEXT, "number of devices in training", key=True),
    Column("devices", COUNT, "simulated devices on which the model is evaluated", key=True, needed=True),
    Column("seed", COUNT, "random seed", key=True, needed=True),
    Column("examples", COUNT, "examples on which the model is evaluated", always=True),
    Column("value", NUMBER, "the metric", needed=True),
    Column("value_low", NUMBER, "lower end of its 95% interval over the examples"),
    Column("value_high", NUMBER, "upper end of its 95% interval over the examples"),
    Column(
        "change", NUMBER, "change from the baseline: percentage points of accuracy, or % of perplexity", always=True
    ),
    Column("change_low", NUMBER, "lower end of its 95% interval over the examples, the same for both", always=True),
    Column("change_high", NUMBER, "upper end of its 95% interval over the examples"),
    Column("train_s", NUMBER, "time of the training", "s"),
    Column("train_examples", COUNT, "examples seen in training"),
    Column("train_device", TEXT, "device that trained: `cpu` or `cuda`"),
    *STATUS,
)
