"""What codebooks ASTRA needs: the settings on which codebooks depend, apart from the model and the data.

Two variants of ASTRA with equal specs use the same codebooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from testbed.astra.bit_packing import index_bits
from testbed.astra.opq import PreRotation, check_pre_rotation
from testbed.astra.quantized import Quantized, check_quantized, quantized_width
from testbed.astra.quantizer import check_quantizer
from testbed.errors import ConfigError
from testbed.models.shape import ModelShape


@dataclass(frozen=True)
class CodebookSpec:
    """Settings of codebooks, which are also settings of ASTRA (``size`` is its ``codebook_size``).

    groups: G, codewords side by side in a token. size: K, codewords in a codebook. num_quantizers: R, stages of
    residual quantization. pre_rotation: how tokens are rotated before quantization (opq.py). quantized: which tensor
    of a layer is quantized (quantized.py). anchor_tokens: how many first tokens of a causal model are never quantized.
    """

    groups: int
    size: int
    num_quantizers: int = 1
    pre_rotation: PreRotation = "none"
    quantized: Quantized = "residual"
    anchor_tokens: int = 0

    @property
    def indices(self) -> int:
        """I = R * G, indices that stand for one token in one layer."""
        return self.num_quantizers * self.groups

    @property
    def token_bits(self) -> int:
        """Bits that stand for one quantized token in one layer: R * G * log2 K."""
        return self.indices * index_bits(self.size)

    def bits_per_token(self, tokens: int) -> float:
        """Bits per token and layer, mean over a sequence of ``tokens``; anchor tokens are not sent and cost nothing."""
        return (1 - min(self.anchor_tokens, tokens) / tokens) * self.token_bits

    def width(self, shape: ModelShape) -> int:
        """W, numbers of one token that are quantized in one layer of the model."""
        return quantized_width(shape, self.quantized)

    def codebook_shape(self, shape: ModelShape) -> tuple[int, int, int, int]:
        """[L, R * G, K, W / G], the shape of the model's codebooks."""
        return shape.layers, self.indices, self.size, self.width(shape) // self.groups

    @property
    def label(self) -> str:
        """For progress messages: ``G = 16, K = 1024``, and each other setting that is not the default."""
        words = [f"G = {self.groups}", f"K = {self.size}"]
        words += [f"{self.num_quantizers} residual stages"] if self.num_quantizers > 1 else []
        words += [f"pre_rotation={self.pre_rotation}"] if self.pre_rotation != "none" else []
        words += [self.quantized] if self.quantized != "residual" else []
        words += [f"{self.anchor_tokens} anchor tokens"] if self.anchor_tokens else []
        return ", ".join(words)

    @property
    def recipe(self) -> dict[str, Any]:
        """All settings as JSON data, by the names of ASTRA's settings."""
        settings = asdict(self)
        return {"groups": settings.pop("groups"), "codebook_size": settings.pop("size"), **settings}

    def check(self, shape: ModelShape) -> None:
        """Raise ConfigError (key ``astra.<setting>``) for values that do not exist or do not fit the model."""
        check_quantized(self.quantized)
        check_pre_rotation(self.pre_rotation)
        if self.num_quantizers < 1:
            raise ConfigError("astra.num_quantizers", self.num_quantizers, "must be 1 or more")
        check_quantizer(self.width(shape), self.groups, self.size)
        if self.quantized != "residual" and not shape.causal:
            raise ConfigError("astra.quantized", self.quantized, "must be residual but for a causal model")
        if self.anchor_tokens < 0 or (self.anchor_tokens and not shape.causal):
            raise ConfigError("astra.anchor_tokens", self.anchor_tokens, "must be 0, or for a causal model 1 or more")


def common_settings(specs: Sequence[CodebookSpec]) -> CodebookSpec:
    """The first spec, which stands for what all have in common. Raises ValueError unless only their ``groups`` differ.

    Codebooks of such specs are trained on the same vectors, so that one pass over the model serves all of them.
    """
    first = specs[0]
    for spec in specs:
        if replace(spec, groups=first.groups) != first:
            raise ValueError(f"specs of one pass must differ in groups only; found ({first.label}) and ({spec.label})")
    return first
