"""Codeword deduplication for one group: equal codewords are attended to once (docs/paper.md, section 4.2).

Received tokens that share a codeword have equal keys and values. n of them therefore count in a softmax like one of
them with log n added to its score. Only the codewords that occur are attended to. Their number is at most the number
of tokens and at most the codebook's size, so the cost per query stops growing with the sequence. The result is exact
except for rounding. A device of a causal model receives tokens from earlier devices only, and all of its queries see
all of them.

Attention to the received tokens alone, N = 4, D = 768, 12 heads, K = 1024, one thread of a shared 2-core AMD EPYC
(AVX2), medians in ms. *Both* is attention to received tokens and own rows. Deduplication also saves the decoding and
projection of the received tokens.

    T                      1024   4096   16384
    per token               9.6    177    2565
    per codeword            8.3     60     234
    per token, both        12.4    194    3303
    per codeword, both     11.8     99    1149
    decoding, projection     21    116     454

One call over own rows and all codewords took 17, 116 and 1075.

Keys must not depend on the position. Under rotary embeddings, two tokens with one codeword have different keys.

Shape suffixes: B batch, R received tokens, K codewords, U codewords that occur, H heads, k head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from testbed.astra.lookup_tables import LookupTable
from testbed.models.decoder import DecoderBlock
from testbed.models.llama import GroupedAttention
from testbed.models.transformer import Block


class CodewordAttention:
    """Keys and values of one block's codewords, [1, H, K, k], from a codebook [1, K, D] of one group.

    rotation_DD: the tokens' rotation before quantization. Raises ValueError for more groups, for a model with rotary
    embeddings, and what LookupTable raises.
    """

    def __init__(self, block: Block | DecoderBlock, codebook_GKd: Tensor, rotation_DD: Tensor | None = None):
        if len(codebook_GKd) != 1:
            raise ValueError(f"codebooks have {len(codebook_GKd)} groups; per-codeword attention allows 1")
        if isinstance(block.attn, GroupedAttention):
            raise ValueError(
                "the model has rotary embeddings, so tokens with the same codeword have different keys; per-codeword "
                "attention allows only models whose positions are part of the embedding"
            )
        self.codebook_size = codebook_GKd.shape[1]
        table = LookupTable(block, codebook_GKd, rotation_DD)
        k_BHKk, v_BHKk = table.keys_values(torch.arange(self.codebook_size)[:, None])
        self.k_BHKk, self.v_BHKk = k_BHKk.contiguous(), v_BHKk.contiguous()

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
