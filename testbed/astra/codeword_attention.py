"""Per-codeword attention for one group: received tokens of equal codewords are attended to once (docs/paper.md, section
4.2).

Tokens that share a codeword have equal keys and values, so n of them weigh in a softmax like one of them with log n
added to its score. Only the codewords that occur are attended to: never more than there are tokens, nor than the
codebook has, so that the cost per query stops growing with the sequence. The result is exact, but for rounding. A
device of a causal model counts what it received, which is from devices before it only, all of it visible to every own
query.

Attention to the received tokens alone, N = 4, D = 768, 12 heads, K = 1024, one thread of a 2-core AMD EPYC (AVX2) that
others used too, medians in ms: T = 1024: 9.6 per token, 8.3 per codeword; T = 4096: 177 and 60; T = 16384: 2565 and
234. With own rows: 12.4 and 11.8; 194 and 99; 3303 and 1149. Nor are received tokens decoded and projected (21, 116,
454 ms). Own rows and all codewords side by side in one call took 17, 116 and 1075.

It needs keys that do not depend on the position. Rotated keys do: two tokens of one codeword differ in them.

Shape suffixes: B batch, R received tokens, K codewords, U codewords that occur, H heads, k head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from testbed.astra.lookup_tables import CodewordTables
from testbed.models.decoder import DecoderBlock
from testbed.models.llama import GroupedAttention
from testbed.models.transformer import Block


class CodewordAttention:
    """Keys and values of one block's codewords, [1, H, K, k], from a codebook [1, K, D] of one group.

    rotation_DD: by which tokens were turned before quantization. Raises ValueError for more groups, for a model that
    rotates keys, and what CodewordTables raises.
    """

    def __init__(self, block: Block | DecoderBlock, codebook_GKd: Tensor, rotation_DD: Tensor | None = None):
        if len(codebook_GKd) != 1:
            raise ValueError(f"codebooks have {len(codebook_GKd)} groups; per-codeword attention allows 1")
        if isinstance(block.attn, GroupedAttention):
            raise ValueError(
                "the model rotates keys by position (rotary embeddings), so tokens of one codeword have different "
                "keys; per-codeword attention allows only models whose positions are part of the embedding"
            )
        self.codebook_size = codebook_GKd.shape[1]
        tables = CodewordTables(block, codebook_GKd, rotation_DD=rotation_DD)
        k_BHKk, v_BHKk = tables.keys_values(torch.arange(self.codebook_size)[:, None])
        self.k_BHKk, self.v_BHKk = k_BHKk.contiguous(), v_BHKk.contiguous()

    @property
    def bytes(self) -> int:
        """Of the codewords' keys and values."""
        return self.k_BHKk.nbytes + self.v_BHKk.nbytes

    def occurring(self, codes_RG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [1, H, U, k] of the codewords of indices [R, 1], int64, and log counts [1, U] for the scores.

        Raises ValueError for codes of another shape.
        """
        if codes_RG.dim() != 2 or codes_RG.shape[1] != 1:
            raise ValueError(f"codes are {list(codes_RG.shape)}; expected [tokens, 1]")
        counts_K = torch.bincount(codes_RG[:, 0], minlength=self.codebook_size)
        occur_U = counts_K.nonzero().squeeze(1)
        k_BHUk, v_BHUk = self.k_BHKk.index_select(2, occur_U), self.v_BHKk.index_select(2, occur_U)
        return k_BHUk, v_BHUk, counts_K[occur_U].log()[None]
