"""What every actor needs of a causal decoder: weights, a prompt, codebooks, and what single computes.

A prompt is a window of Wikipedia that k-means never sees. Codebooks see few windows, as neither bytes nor time depend
on what is in them: what they cost in quality is the accuracy experiments' affair.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from tokenizers import Tokenizer

from experiments.measurement.vit_inputs import (
    CACHE,
    Assets,
    CodebookFiles,
    assets_of,
    methods_of,
    tokens_of,
    trained_codebooks,
)
from testbed.astra.decoder_codebooks import decoder_codebooks_for
from testbed.astra.training.checkpoints import open_decoder
from testbed.config.schema import DecoderLatencyConfig
from testbed.datasets.token_windows import windows
from testbed.errors import ConfigError
from testbed.grid import Point
from testbed.methods.base import Method
from testbed.models.decoders import DecoderChoice, load_decoder
from testbed.models.gpt2 import Gpt2
from testbed.models.llama import Llama
from testbed.models.weights import save_model
from testbed.network.sandbox import scratch
from testbed.progress import counted

CORPUS = "wikipedia"
SAMPLES_PER_CODEWORD = 4


def prepare_decoder_inputs(config: DecoderLatencyConfig, points: list[Point]) -> dict[int, Assets]:
    """For each of the points' numbers of tokens; see ``prepare_vit_inputs``. Also ConfigError for prompts too long."""
    model, tokenizer = load_decoder(config.model.name, config.model.folder, CACHE)
    methods, tokens = methods_of(points), tokens_of(config, points)
    if isinstance(model, Gpt2) and tokens[-1] > model.config.positions:
        raise ConfigError("tokens", tokens[-1], f"must be at most {model.config.positions}, the model's positions")
    if config.checkpoint:
        student = open_decoder(Path(config.checkpoint), model.config)
        own = {"quantized": student.quantized, "anchor_tokens": student.anchor_tokens}
        codebooks = trained_codebooks(student, own, methods, config.checkpoint)
        model = student.model
    else:
        codebooks = _codebooks(config, model, tokenizer, methods, tokens[0])
    weights = scratch() / "weights.safetensors"
    save_model(model, weights)
    choice = DecoderChoice(config.model.label, model.config)
    prompts = {count: windows(CORPUS, tokenizer, CACHE, count, 1) for count in tokens}
    return {count: assets_of(choice, count, [weights], ids_BS, codebooks) for count, ids_BS in prompts.items()}


def _codebooks(
    config: DecoderLatencyConfig, model: Llama | Gpt2, tokenizer: Tokenizer, methods: list[Method], tokens: int
) -> CodebookFiles:
    """Files of k-means codebooks for the methods that need some."""
    codebooks: CodebookFiles = {}
    for method in methods:
        if not method.codebook_size or method.codebook_key in codebooks:
            continue
        groups, size, quantized, anchor_tokens, num_quantizers, pre_rotation = method.codebook_key
        count = math.ceil(SAMPLES_PER_CODEWORD * size / (tokens - anchor_tokens))
        windows_NS = windows(CORPUS, tokenizer, CACHE, tokens, count, "train")
        begin = time.monotonic()
        with counted(f"codebooks of {size} codewords, G = {groups}, {quantized}: k-means, or the cache") as report:
            of = (quantized, [groups], size, config.seed, CACHE, anchor_tokens, report, num_quantizers, pre_rotation)
            codebooks[method.codebook_key] = decoder_codebooks_for(model, windows_NS, *of)[groups]
        print(f"codebooks ready in {time.monotonic() - begin:.1f} s")
    return codebooks
