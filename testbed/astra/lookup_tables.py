"""Lookup tables of codewords: keys and values of received tokens as sums of rows that are computed ahead.

A quantized token consists of G codewords, one for each group. Anything linear in the token is therefore a sum of G
rows, one for each codeword, and each codeword's row can be computed before any token arrives (docs/paper.md, section
4.1; product quantization sums distances in the same way: Jegou et al. 2011).

The norm before the projection is linear except for one factor per token, the reciprocal of its deviation. It follows
from the token's sum and sum of squares, which are sums over its codewords too. LayerNorm also subtracts the mean,
which is linear, so it is subtracted from the weights. A rotation before quantization (opq.py) is linear and preserves
sums of squares, so it is applied to the weights. The result is therefore exact except for rounding. With a rotation,
the rounding error is larger where LayerNorm leaves little deviation, as with two nearly equal numbers. Residual
stages do not allow tables: the sum of squares of a sum of codewords is not the sum of their sums of squares.

Keys and values of 768 received tokens, D = 768, K = 1024, float32, one thread of a shared 2-core AMD EPYC (AVX2),
medians of 11 in ms. Decoding and projection, in the same process, took 23 to 25 for every G:

    G        1    8   16    32
    tables 1.6  4.3  7.7  14.2

The rows are summed by one ``embedding_bag``. In-place addition, group after group, takes twice as long from G = 8 on.
A gather of all rows before one sum takes twelve times as long.

Shape suffixes: P received tokens, D hidden, G groups, K codewords, N = G * K rows, d = D / G, W key and value widths
together, J key/value heads, k head width.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from testbed.astra.quantizer import Quantizer, check_quantizer
from testbed.errors import printable
from testbed.models.decoder import Decoder, DecoderBlock
from testbed.models.transformer import Attention, Block
from testbed.models.vit import VisionTransformer
from testbed.models.weights import save_tensors
from testbed.results.cache import making

RECIPE = 1  # to be raised with every change that alters tables, so that older cache files are not used
SUM_TOLERANCE = 1e-6  # of the sum of the terms' magnitudes: what the order of a sum may change


@dataclass(frozen=True)
class Deviation:
    """A norm's divisor of a token: its standard deviation (``centered``: LayerNorm) or root mean square (RMSNorm)."""

    centered: bool
    eps: float

    def reciprocal(self, moments_P2: Tensor, hidden: int) -> Tensor:
        """[P], float32, from the tokens' sums and sums of squares, float64."""
        mean_P, square_P = (moments_P2 / hidden).unbind(1)
        variance_P = (square_P - mean_P.square()).clamp(min=0) if self.centered else square_P
        return (variance_P + self.eps).rsqrt().float()


@dataclass(frozen=True)
class Projection:
    """A block's first norm and its key and value projections as one: (x @ weight.T) / deviation + bias.

    sum_weight_D: the weights that give the sum of a token's numbers: ones, rotated as the token is.
    """

    weight_WD: Tensor
    sum_weight_D: Tensor
    bias_W: Tensor | None
    deviation: Deviation

    @classmethod
    def of(cls, block: Block | DecoderBlock, rotation_DD: Tensor | None = None) -> Projection:
        """rotation_DD: the tokens' rotation. Raises ValueError for a norm other than LayerNorm or RMSNorm."""
        norm, linears = block.norm1, (block.attn.k, block.attn.v)
        if not isinstance(norm, nn.LayerNorm | nn.RMSNorm):
            raise ValueError(f"the block's first norm is {type(norm).__name__}; expected LayerNorm or RMSNorm")
        centered = isinstance(norm, nn.LayerNorm)
        plain_WD = torch.cat([linear.weight for linear in linears]).double()
        weight_WD = plain_WD if norm.weight is None else plain_WD * norm.weight
        if centered:
            weight_WD = weight_WD - weight_WD.mean(1, keepdim=True)
        biases = [torch.zeros(len(x.weight)) if x.bias is None else x.bias for x in linears]
        bias_W = torch.cat(biases).double()
        if centered and norm.bias is not None:
            bias_W += plain_WD @ norm.bias.double()
        sum_weight_D = torch.ones_like(weight_WD[0])
        if rotation_DD is not None:
            weight_WD, sum_weight_D = (weight @ rotation_DD.double().T for weight in (weight_WD, sum_weight_D))
        eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
        deviation = Deviation(centered, eps)
        return cls(weight_WD.float(), sum_weight_D, bias_W.float() if bias_W.any() else None, deviation)

    def rows(self, codebooks_GKd: Tensor) -> Tensor:
        """Each codeword times its group's part of the weights, [G, K, W], float32."""
        groups, _, width = codebooks_GKd.shape
        return codebooks_GKd @ self.weight_WD.unflatten(1, (groups, width)).permute(1, 2, 0)


class LookupTable:
    """The table of one block and one layer's codebooks [G, K, d]; made, or loaded from ``cache_dir`` if it is there.

    rotation_DD: the tokens' rotation before quantization; the keys and values are those of the tokens rotated back.
    Files are mapped, so that processes share them. Raises ValueError for codebooks of another width and for a norm
    other than LayerNorm or RMSNorm, ConfigError for groups or a codebook size that do not exist.
    """

    @torch.no_grad()
    def __init__(
        self,
        block: Block | DecoderBlock,
        codebooks_GKd: Tensor,
        rotation_DD: Tensor | None = None,
        cache_dir: Path | None = None,
    ):
        self.groups, self.codebook_size, group_width = codebooks_GKd.shape
        self.hidden = self.groups * group_width
        check_quantizer(self.hidden, self.groups, self.codebook_size)
        if self.hidden != block.attn.k.weight.shape[1]:
            raise ValueError(f"codebooks are of width {self.hidden}; expected {block.attn.k.weight.shape[1]}")
        projection = Projection.of(block, rotation_DD)
        self._bias_W, self._deviation = projection.bias_W, projection.deviation
        self._key_width = len(block.attn.k.weight)
        self._attn: Attention = block.attn
        table = _make(projection, codebooks_GKd) if cache_dir is None else _cached(projection, codebooks_GKd, cache_dir)
        self.rows_NW, self.moments_N2 = table["rows"], table["moments"]
        self._first_G = torch.arange(self.groups) * self.codebook_size

    @torch.no_grad()
    def keys_values(self, codes_PG: Tensor, start: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """What ``block.attn.keys_values(block.norm1(decoded[None]), start)`` returns, each float32 [1, J, P, k].

        codes_PG: indices, int64. start: the position of the first token, or of each token [P]; models without rotary
        embeddings ignore it. Raises ValueError for another number of groups.
        """
        if codes_PG.dim() != 2 or codes_PG.shape[1] != self.groups:
            raise ValueError(f"codes are {list(codes_PG.shape)}; expected [tokens, {self.groups}]")
        rows_PG = codes_PG + self._first_G
        scale_P = self._deviation.reciprocal(F.embedding(rows_PG, self.moments_N2).sum(1), self.hidden)
        out_PW = F.embedding_bag(rows_PG, self.rows_NW, mode="sum").mul_(scale_P[:, None])
        if self._bias_W is not None:
            out_PW += self._bias_W
        out_BPJk = out_PW[None].split([self._key_width, out_PW.shape[1] - self._key_width], dim=-1)
        k_BJPk, v_BJPk = (x.unflatten(-1, (self._attn.key_value_heads, -1)).transpose(1, 2) for x in out_BPJk)
        return self._attn.apply_rotary(k_BJPk, start), v_BJPk


def table_bytes(codewords: int, width: int) -> int:
    """Bytes of a table: for each codeword a row of ``width`` float32 numbers, and two float64 moments."""
    return codewords * (width * torch.float32.itemsize + 2 * torch.float64.itemsize)


def lookup_tables(
    model: VisionTransformer | Decoder, quantizer: Quantizer, cache_dir: Path | None = None
) -> list[LookupTable]:
    """The table of each layer.

    Raises ValueError for another number of layers, for several residual stages, and what LookupTable raises.
    """
    blocks = list(cast(Iterable[Block | DecoderBlock], model.blocks))
    if len(blocks) != quantizer.layers:
        raise ValueError(f"the quantizer has {quantizer.layers} layers; expected the model's {len(blocks)}")
    if quantizer.num_quantizers > 1:
        raise ValueError(f"num_quantizers is {quantizer.num_quantizers}; lookup tables allow 1")
    rotations = [None] * len(blocks) if quantizer.rotation_LDD is None else quantizer.rotation_LDD
    layers = zip(blocks, quantizer.codebooks_LIKd, rotations, strict=True)
    return [LookupTable(block, codebooks_GKd, rotation_DD, cache_dir) for block, codebooks_GKd, rotation_DD in layers]


def _make(projection: Projection, codebooks_GKd: Tensor) -> dict[str, Tensor]:
    """rows [N, W], float32, and moments [N, 2], float64: the sum and the sum of squares of each codeword."""
    rows_GKW = projection.rows(codebooks_GKd)
    codewords_GKd = codebooks_GKd.double()
    sums_GK1 = codewords_GKd @ projection.sum_weight_D.unflatten(0, (len(codewords_GKd), -1))[..., None]
    moments_GK2 = torch.cat([sums_GK1, codewords_GKd.square().sum(-1, keepdim=True)], dim=-1)
    return {"rows": rows_GKW.flatten(0, 1), "moments": moments_GK2.flatten(0, 1)}


def _cached(projection: Projection, codebooks_GKd: Tensor, folder: Path) -> dict[str, Tensor]:
    """As ``_make``, from a file named by a hash of all that the rows depend on; a damaged file is replaced."""
    digest = hashlib.sha256(f"{RECIPE} {list(codebooks_GKd.shape)}".encode())
    for tensor in (projection.weight_WD, projection.sum_weight_D, codebooks_GKd):
        digest.update(tensor.contiguous().numpy().data)
    path = folder / f"lut-{digest.hexdigest()[:16]}.safetensors"
    if (table := _usable(path, projection, codebooks_GKd)) is None:
        with making(path):
            if (table := _usable(path, projection, codebooks_GKd)) is None:
                save_tensors(_make(projection, codebooks_GKd), path)
                table = load_file(path)  # mapped, which frees the memory of the table that was made
    return table


def _usable(path: Path, projection: Projection, codebooks_GKd: Tensor) -> dict[str, Tensor] | None:
    """The table of a file; None if there is no file, or a damaged one, with a warning."""
    if not path.exists():
        return None
    try:
        table = load_file(path)
        _spot_check(table, projection, codebooks_GKd)
        return table
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        warnings.warn(printable(f"{path} is damaged ({error}); making the lookup table again"), stacklevel=4)
        return None


def _spot_check(table: dict[str, Tensor], projection: Projection, codebooks_GKd: Tensor) -> None:
    """Compare each group's first and last row with a new one, to detect a page that a crash lost. ValueError."""
    size = codebooks_GKd.shape[1]
    few_GKd = codebooks_GKd[:, [0, size - 1]]
    # products of two rows and of a thousand rows are summed in different orders
    terms = float(replace(projection, weight_WD=projection.weight_WD.abs()).rows(few_GKd.abs()).max())
    few_N = (torch.arange(len(codebooks_GKd))[:, None] * size + torch.tensor([0, size - 1])).flatten()
    for name, expected in _make(projection, few_GKd).items():
        found, shape = table[name], (len(codebooks_GKd) * size, expected.shape[1])
        if found.dtype != expected.dtype or found.shape != shape:
            raise ValueError(f"{name} are {found.dtype} {list(found.shape)}; expected {expected.dtype} {list(shape)}")
        rounding = 4 * torch.finfo(torch.float32).eps * float(expected.abs().max())
        tolerance = max(rounding + SUM_TOLERANCE * terms, 1e-6)
        if not torch.allclose(found[few_N].float(), expected.float(), rtol=0, atol=tolerance):
            raise ValueError(f"{name} have other numbers")
