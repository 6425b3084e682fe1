"""The sizes of a Transformer workload, and the work of its parts, from which every cost formula is computed.

Multiply-accumulates (MACs) are those of matrix products, as in the paper. Norms, activations and sums are passes over
memory (testbed.work).
"""

from __future__ import annotations

from dataclasses import dataclass

from testbed.work import FLOAT_BYTES, NO_WORK, Work, attention, memory_pass, product

# Kernels for the weights of a merge: stack; maximum, absolute value, comparison with infinity, replacement, difference,
# exponential, sum, logarithm and addition of a log-sum-exp; then clamp, difference and exponential.
WEIGHT_KERNELS = 13
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

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight matrices in float32. A matrix multiplies each token once, so it has as many MACs."""
        layer = self.query(1).macs + self.keys_values(1).macs + self.finish(1).macs
        return FLOAT_BYTES * (self.layers * layer + self.patch_values * self.hidden + self.head().macs)

    def embed(self, tokens: int, joined: bool = True) -> Work:
        """Embed ``tokens`` content tokens and add their positions. An image is cut into all of its patches before.

        joined: whether the class token, which gets its position too, is put in front of them.
        """
        patches = memory_pass(2 * self.tokens * self.patch_values)
        embedded = product(tokens, self.patch_values, self.hidden) + memory_pass(3 * tokens * self.hidden)
        if not (self.class_tokens and joined):
            return patches + embedded
        join = memory_pass(3 * self.hidden) + memory_pass(2 * (tokens + self.class_tokens) * self.hidden)
        return patches + embedded + join

    def head(self) -> Work:
        """The head on one token."""
        return product(1, self.hidden, self.classes)

    def norm(self, rows: int) -> Work:
        """LayerNorm or RMSNorm of ``rows`` tokens."""
        return memory_pass(2 * rows * self.hidden)

    def query(self, rows: int) -> Work:
        """Query projection of ``rows`` normalized tokens."""
        return product(rows, self.hidden, self.query_width) + self._rotate(rows, self.query_width)

    def keys_values(self, rows: int) -> Work:
        """Key and value projections of ``rows`` normalized tokens."""
        return 2 * product(rows, self.hidden, self.key_width) + self._rotate(rows, self.key_width)

    def attend(self, queries: int, keys: int) -> Work:
        """Attention of all heads: scores, softmax, weighted sum."""
        return attention(queries, keys, self.query_width, self.key_width)

    def project_out(self, rows: int) -> Work:
        """Output projection of the attention of ``rows`` tokens."""
        return product(rows, self.query_width, self.hidden)

    def add(self, rows: int) -> Work:
        """Add two tensors of ``rows`` tokens, as a residual does."""
        return memory_pass(3 * rows * self.hidden)

    def add_sum(self, rows: int) -> Work:
        """Add the bias to a sum over devices, and the result to the residual."""
        return memory_pass(2 * rows * self.hidden) + self.add(rows)

    def mlp(self, rows: int, columns: int | None = None) -> Work:
        """The MLP of ``rows`` normalized tokens. columns: of its hidden state, default all."""
        columns = self.mlp_hidden if columns is None else columns
        inner = self.mlp_matrices - 1  # one product, or with a gate two products whose results are multiplied
        activation = memory_pass((2 if inner == 1 else 5) * rows * columns, inner)
        return inner * product(rows, self.hidden, columns) + activation + product(rows, columns, self.hidden)

    def finish(self, rows: int) -> Work:
        """Everything after attention for ``rows`` tokens: output projection, residual, norm, MLP, residual."""
        return self.project_out(rows) + self.add(rows) + self.norm(rows) + self.mlp(rows) + self.add(rows)

    def layer(self, rows: int) -> Work:
        """One layer on one device, for all of its rows."""
        projections = self.norm(rows) + self.query(rows) + self.keys_values(rows)
        return projections + self.attend(rows, rows) + self.finish(rows)

    def merge(self, rows: int, parts: int) -> Work:
        """Merge ``parts`` partial attentions of ``rows`` queries into one softmax.

        The first part is scaled, and each other one is multiplied and added. WEIGHT_KERNELS compute the weights before,
        from one number for each query, head and part: mostly launches.
        """
        if parts == 1:
            return NO_WORK
        weights = memory_pass(WEIGHT_KERNELS * parts * rows * self.heads, WEIGHT_KERNELS)
        return weights + memory_pass((3 * parts - 1) * rows * self.query_width, parts)

    def _rotate(self, rows: int, width: int) -> Work:
        """Rotary embeddings: two halves are multiplied by cosines and sines, added, and joined."""
        return memory_pass(10 * rows * width, 7) if self.rotary else NO_WORK
