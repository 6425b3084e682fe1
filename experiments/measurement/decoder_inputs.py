"""What a run needs of a causal decoder: weights, a prompt, codebooks, and the result of one device.

A prompt is a window of Wikipedia that k-means never sees. Codebooks are trained on few windows, because bytes and times
do not depend on their contents; the accuracy experiments measure their quality.
"""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from experiments.measurement.model_inputs import (
    CACHE,
    Assets,
    CodebookFiles,
    assets_of,
    codebook_specs,
    kmeans_codebooks,
    tokens_of,
    trained_codebooks,
)
from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.decoder_codebooks import decoder_codebooks_for
from testbed.astra.kmeans import Progress
from testbed.astra.training.checkpoints import open_decoder
from testbed.config.schema import DecoderLatencyConfig
from testbed.datasets.token_windows import windows
from testbed.errors import ConfigError
from testbed.grid import Point
from testbed.models.decoders import DecoderChoice, check_tokens, load_decoder
from testbed.models.gpt2 import Gpt2
from testbed.models.weights import save_model
from testbed.network.sandbox import scratch

CORPUS = "wikipedia"
SAMPLES_PER_CODEWORD = 4


def prepare_decoder_inputs(config: DecoderLatencyConfig, points: list[Point]) -> dict[int, Assets]:
    """The assets for each of the points' numbers of tokens; see ``prepare_vit_inputs``.

    Raises ConfigError for prompts that are too long for the model or the corpus, and for a tokenizer that does not fit.
    """
    model, tokenizer = load_decoder(config.model.name, config.model.folder, CACHE)
    specs, tokens = codebook_specs(points), tokens_of(config, points)
    if isinstance(model, Gpt2) and tokens[-1] > model.config.positions:
        raise ConfigError("tokens", tokens[-1], f"must be at most {model.config.positions}, the model's positions")

    def texts(length: int, count: int, split: str) -> Tensor:
        """Windows [count, length]. ConfigError names ``tokens``, because no key of the run is about the corpus."""
        try:
            found = windows(CORPUS, tokenizer, CACHE, length, count, split)
        except ConfigError as error:
            if error.key not in ("data.length", "data.windows"):
                raise
            need = f"{count} {'window' if count == 1 else 'windows'} of {length} tokens"
            raise ConfigError("tokens", length, f"needs {need}, but {error.allowed}") from None
        check_tokens(found, tokenizer, model.config, config.model.folder)
        return found

    prompts = {count: texts(count, 1, "held_out") for count in tokens}  # before the work, because it may be refused
    if config.checkpoint:
        student = open_decoder(Path(config.checkpoint), model.config)
        codebooks, model = trained_codebooks(student, specs, config.checkpoint), student.model
    else:

        def train(family: list[CodebookSpec], report: Progress) -> CodebookFiles:
            count = math.ceil(SAMPLES_PER_CODEWORD * family[0].size / (tokens[0] - family[0].anchor_tokens))
            windows_NS = texts(tokens[0], count, "train")
            return decoder_codebooks_for(model, windows_NS, family, config.seed, CACHE, report)

        codebooks = kmeans_codebooks(specs, train)
    weights = scratch() / "weights.safetensors"
    save_model(model, weights)
    choice = DecoderChoice(config.model.label, model.config)
    return {count: assets_of(choice, count, [weights], ids_BS, codebooks) for count, ids_BS in prompts.items()}
