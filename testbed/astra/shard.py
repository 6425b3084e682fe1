"""What one rank of ASTRA holds, and the segments of its forward pass.

Shape suffixes: P own tokens, R received tokens, Q own rows (the class copy first), D hidden, G groups, H heads,
K head width, U keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from testbed.astra.codes import index_bits, pack, unpack
from testbed.astra.merge import Part, attend_part, merge
from testbed.astra.quantizer import Quantizer
from testbed.astra.received import Expansion, Keys, expansions
from testbed.astra.rows import Rows, rows_of
from testbed.astra.speedups import Speedups
from testbed.astra.split import Split
from testbed.models.decoder import Decoder, DecoderBlock
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer


@dataclass(frozen=True)
class AstraShard:
    """The whole model, and what one rank does with it. quantizer: None on one device, which sends nothing."""

    blocks: list[Block | DecoderBlock]
    rows: Rows
    split: Split
    quantizer: Quantizer | None
    expansions: list[Expansion]
    positions: list[Tensor]  # [R] of each received piece

    @classmethod
    def of(
        cls,
        model: VisionTransformer | Decoder,
        split: Split,
        quantizer: Quantizer | None,
        speedups: Speedups,
        cache: Path | None,
    ) -> AstraShard:
        """cache: the folder of tables. Raises ValueError where the model does not allow a speed-up."""
        blocks = list(cast(Iterable[Block | DecoderBlock], model.blocks))
        ways = [] if quantizer is None else expansions(blocks, quantizer, speedups, cache)
        spans = map(split.received_positions, range(split.pieces))
        positions = [torch.cat([torch.arange(0), *(torch.arange(*span) for span in piece)]) for piece in spans]
        return cls(blocks, rows_of(model, split), split, quantizer, ways, positions)

    def encode(self, layer: int, piece: int, x_QD: Tensor) -> tuple[Tensor, Tensor]:
        """(indices [P, G] of a piece's tokens, the same as a message)."""
        assert self.quantizer is not None
        sent = self.split.sent_tokens(self.split.rank)[piece]
        codes_PG = self.quantizer.encode(layer, x_QD[len(x_QD) - sent :])
        return codes_PG, pack(codes_PG, index_bits(self.quantizer.codebook_size))

    def keys(self, layer: int, piece: int, messages: tuple[Tensor, ...]) -> Keys:
        """Of a received piece, from everyone's messages."""
        assert self.quantizer is not None
        bits, groups = index_bits(self.quantizer.codebook_size), self.quantizer.groups
        codes = [
            unpack(messages[rank], self.split.sent_tokens(rank)[piece], groups, bits) for rank in self.split.sources
        ]
        return self.expansions[layer].keys(torch.cat(codes), self.positions[piece])

    def local(self, layer: int, pieces: list[Tensor]) -> tuple[Tensor, Part]:
        """(queries [1, H, Q, K] of own rows, their attention to each other)."""
        block, start = self.blocks[layer], self.split.start
        h_BQD = block.norm1(torch.cat(pieces)[None])
        q_BHQK = block.attn.query(h_BQD, start)
        return q_BHQK, attend_part(q_BHQK, *block.attn.keys_values(h_BQD, start), self.rows.visible)

    def mix(self, parts: list[Part]) -> Tensor:
        """Own rows' attention to everything, [Q, H*K], before the output projection."""
        return merge(parts).mixed()[0]

    def finish(self, layer: int, x_QD: Tensor, mixed_QD: Tensor) -> Tensor:
        """Some own rows after the layer, normalised after the last one."""
        x_QD = self.blocks[layer].finish(x_QD[None], mixed_QD[None])[0]
        return self.rows.norm(x_QD) if layer + 1 == len(self.blocks) else x_QD
