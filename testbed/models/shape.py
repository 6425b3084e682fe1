"""The sizes of a Transformer workload, from which every cost formula is computed.

Multiply-accumulates (MACs) are those of matrix products. Norms, softmax and biases are not counted, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_LAYERS = 1000  # of a model that is built: each layer takes a millisecond and kilobytes, whatever its width is


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one forward pass of batch 1. ``sequence`` = ``tokens`` content tokens + ``class_tokens``."""

    layers: int
    hidden: int
    heads: int
    mlp_hidden: int
    tokens: int
    class_tokens: int  # 0 or 1, in front of the content tokens
    patch_values: int  # numbers per content token before the embedding
    classes: int  # outputs of the head
    key_value_heads: int = 0  # 0: as many as heads
    mlp_matrices: int = 2  # 3 where a gate multiplies the MLP's hidden state
    head_width: int = 0  # 0: hidden / heads
    causal: bool = False  # a token attends to itself and to earlier tokens only
    rotary: bool = False  # rotary position embeddings

    @property
    def sequence(self) -> int:
        """Tokens that attend to each other: content and class tokens."""
        return self.tokens + self.class_tokens

    @property
    def query_width(self) -> int:
        """Numbers in the queries of one token, over all heads."""
        return self.heads * (self.head_width or self.hidden // self.heads)

    @property
    def key_width(self) -> int:
        """Numbers in the keys of one token, over all heads; also in its values."""
        return self.query_width // self.heads * (self.key_value_heads or self.heads)

    def embed_macs(self, tokens: int) -> int:
        """MACs that embed ``tokens`` content tokens."""
        return tokens * self.patch_values * self.hidden

    def head_macs(self) -> int:
        """MACs of the head on one token."""
        return self.hidden * self.classes

    def query_macs(self, rows: int) -> int:
        """MACs of the query projection of ``rows`` tokens."""
        return rows * self.hidden * self.query_width

    def key_value_macs(self, rows: int) -> int:
        """MACs of the key and the value projection of ``rows`` tokens."""
        return 2 * rows * self.hidden * self.key_width

    def attend_macs(self, queries: int, keys: int) -> int:
        """MACs of scores and weighted sum, all heads."""
        return 2 * queries * keys * self.query_width

    def finish_macs(self, rows: int) -> int:
        """MACs of the attention output projection and the MLP of ``rows`` tokens."""
        return rows * self.hidden * (self.query_width + self.mlp_matrices * self.mlp_hidden)
