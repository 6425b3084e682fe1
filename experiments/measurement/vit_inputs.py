"""What a run needs of a Vision Transformer: weights, a photograph, codebooks, and the result of one device."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from experiments.measurement.model_inputs import (
    CACHE,
    Assets,
    assets_of,
    codebook_specs,
    kmeans_codebooks,
    tokens_of,
    trained_codebooks,
)
from testbed.astra.training.checkpoints import open_result
from testbed.astra.vit_codebooks import vit_codebooks_for
from testbed.config.schema import LatencyConfig
from testbed.datasets.photographs import photograph
from testbed.errors import ConfigError
from testbed.grid import Point
from testbed.models.weights import ModelChoice, build_model, save_model, save_tensors
from testbed.network.sandbox import scratch

POSITIONS = "position"  # the only tensor that depends on the number of tokens


def prepare_vit_inputs(config: LatencyConfig, points: list[Point]) -> dict[int, Assets]:
    """The assets for each of the points' numbers of tokens.

    The model and its codebooks come from the checkpoint, or the model is built and k-means makes its codebooks where
    the cache has none (a minute for the paper's shape). With several numbers of tokens, codebooks are of the smallest,
    because bytes and times do not depend on their contents. Raises ConfigError where a method needs codebooks that the
    checkpoint does not have, and for numbers of tokens other than the checkpoint's.
    """
    choice = ModelChoice(**asdict(config.model))
    specs, tokens = codebook_specs(points), tokens_of(config, points)
    inputs = {count: photograph(count, choice.patch) for count in tokens}  # before the work, because it may be refused
    weights = scratch() / "weights.safetensors"
    if config.checkpoint:
        student = open_result(Path(config.checkpoint), choice.vit_config(tokens[0]))
        if student.class_tokens != "distributed":
            raise ConfigError("checkpoint", config.checkpoint, "must be a model with distributed class tokens")
        codebooks = trained_codebooks(student, specs, config.checkpoint)
        save_model(student.model, weights)
    else:
        model = build_model(choice, tokens[0], config.seed)
        save_model(model, weights)
        codebooks = kmeans_codebooks(
            specs, lambda family, report: vit_codebooks_for(model, family, config.seed, CACHE, report)
        )
    files = {tokens[0]: [weights]}
    for count in tokens[1:]:
        files[count] = [weights, scratch() / f"positions-{count}.safetensors"]
        positions = build_model(choice, count, config.seed).state_dict()[POSITIONS]
        save_tensors({POSITIONS: positions.contiguous()}, files[count][1])
    return {count: assets_of(choice, count, files[count], inputs[count], codebooks) for count in tokens}
