"""Codeword tables: keys and values of received tokens by summing rows, in place of decoding, norm and projection.

A quantized token is G codewords side by side, so whatever is linear in it is a sum of G rows that can be computed ahead
(docs/paper.md, section 4.1; the same idea as distance tables of product quantization: Jegou et al. 2011). LayerNorm and
RMSNorm are linear but for one number per token, its reciprocal deviation, and that follows from two more numbers per
codeword, its sum and its sum of squares. The mean that LayerNorm takes away is linear: the rows are of weights from
which it has been taken away already. A turn of tokens (opq.py) is linear and keeps squares: the weights, and those
of the sum, are turned once. So the result is exact, but for rounding; that of a turn's matrix weighs more where a mean
leaves little to deviate, as of two numbers that are nearly equal. Levels are another matter: squares of sums of
codewords are not sums of their squares.

Keys and values of 768 received tokens, D = 768, K = 1024, one thread of a 2-core AMD EPYC (AVX2) that others used too,
medians of 11 in ms, both ways in one process; decoding and projecting took 23 to 25 for every G:

    G          1     8    16    32
    float32   1.6   4.3   7.7  14.2
    bfloat16  1.2   3.1   5.5   9.6
    float16   1.2   2.6   4.7   9.2

Rows are summed by one ``embedding_bag``: adding them in place, group after group, takes twice as long from G = 8 on,
and gathering all before the sum twelve times.

Shape suffixes: P received tokens, D hidden, G groups, K codewords, d = D / G, W key and value widths together, J
key/value heads, k head width.
"""

from __future__ import annotations

import hashlib
import time
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
from testbed.models.decoder import Decoder, DecoderBlock
from testbed.models.transformer import Attention, Block
from testbed.models.vit import VisionTransformer
from testbed.models.weights import save_tensors

RECIPE = 1  # to be raised with every change that alters tables, so that older cache files are not used
SUMMING = 1e-6  # of the sum of its terms' sizes: what the order of a sum may change
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    """A block's first norm and its key and value matrices as one: (x @ weight.T) / deviation + bias.

    summing_D: weights of a token's sum.
    """

    weight_WD: Tensor
    summing_D: Tensor
    bias_W: Tensor | None
    deviation: Deviation

    @classmethod
    def of(cls, block: Block | DecoderBlock, rotation_DD: Tensor | None = None) -> Projection:
        """rotation_DD: by which tokens have been turned. Raises ValueError for other norms than LayerNorm, RMSNorm."""
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
        summing_D = torch.ones_like(weight_WD[0])
        if rotation_DD is not None:
            weight_WD, summing_D = (rows @ rotation_DD.double().T for rows in (weight_WD, summing_D))
        eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
        deviation = Deviation(centered, eps)
        return cls(weight_WD.float(), summing_D, bias_W.float() if bias_W.any() else None, deviation)

    def rows(self, codebooks_GKd: Tensor) -> Tensor:
        """Each codeword times its part of the matrix, [G, K, W], float32."""
        groups, _, width = codebooks_GKd.shape
        return codebooks_GKd @ self.weight_WD.unflatten(1, (groups, width)).permute(1, 2, 0)


class CodewordTables:
    """The tables of one block and one layer's codebooks [G, K, d], made, or loaded from ``cache_dir`` if it has them.

    dtype: float32, or bfloat16 or float16, which halve memory and traffic; sums are then in float32, and the numbers
    in the table and their sum are rounded. ``bytes`` is their size, and ``made_s`` the seconds that making or loading
    took. Files are mapped, so processes share them. rotation_DD: by which tokens were turned before quantization; what
    the tables give has been turned back. Raises ValueError for codebooks of another width, a norm that is neither
    LayerNorm nor RMSNorm, another dtype, and for float16 if a sum of rows could exceed it.
    """

    @torch.no_grad()
    def __init__(
        self,
        block: Block | DecoderBlock,
        codebooks_GKd: Tensor,
        dtype: torch.dtype = torch.float32,
        cache_dir: Path | None = None,
        rotation_DD: Tensor | None = None,
    ):
        started = time.perf_counter()
        self.groups, self.codebook_size, group_width = codebooks_GKd.shape
        self.hidden = self.groups * group_width
        check_quantizer(self.hidden, self.groups, self.codebook_size)
        if self.hidden != block.attn.k.weight.shape[1]:
            raise ValueError(f"codebooks are of width {self.hidden}; expected {block.attn.k.weight.shape[1]}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype}; allowed: {', '.join(map(str, DTYPES))}")
        projection = Projection.of(block, rotation_DD)
        self._bias_W, self._deviation = projection.bias_W, projection.deviation
        self._key_width = len(block.attn.k.weight)
        self._attn: Attention = block.attn
        if cache_dir is None:
            tables = _make(projection, codebooks_GKd, dtype)
        else:
            tables = _cached(projection, codebooks_GKd, dtype, cache_dir)
        self.rows_NW, self._moments_N2 = tables["rows"], tables["moments"]
        self._first_G = torch.arange(self.groups) * self.codebook_size
        self.made_s = time.perf_counter() - started

    @property
    def bytes(self) -> int:
        """Of the rows and of the codewords' sums."""
        return self.rows_NW.nbytes + self._moments_N2.nbytes

    @torch.no_grad()
    def pre_rope_keys_values(self, codes_PG: Tensor) -> tuple[Tensor, Tensor]:
        """Keys before any rotation, and values, each float32 [1, J, P, k], of the tokens with indices [P, G], int64.

        Raises ValueError for another number of groups.
        """
        if codes_PG.dim() != 2 or codes_PG.shape[1] != self.groups:
            raise ValueError(f"codes are {list(codes_PG.shape)}; expected [tokens, {self.groups}]")
        rows_PG = codes_PG + self._first_G
        scale_P = self._deviation.reciprocal(F.embedding(rows_PG, self._moments_N2).sum(1), self.hidden)
        out_PW = F.embedding_bag(rows_PG, self.rows_NW, mode="sum").float().mul_(scale_P[:, None])
        if self._bias_W is not None:
            out_PW += self._bias_W
        out_BPJk = out_PW[None].split([self._key_width, out_PW.shape[1] - self._key_width], dim=-1)
        k_BJPk, v_BJPk = (x.unflatten(-1, (self._attn.key_value_heads, -1)).transpose(1, 2) for x in out_BPJk)
        return k_BJPk, v_BJPk

    def keys_values(self, codes_PG: Tensor, start: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """What ``block.attn.keys_values(block.norm1(decoded[None]), start)`` gives, each float32 [1, J, P, k].

        start: the position of the first token, or of each [P]; models without rotation do not use it.
        """
        k_BJPk, v_BJPk = self.pre_rope_keys_values(codes_PG)
        return self._attn.apply_rotary(k_BJPk, start), v_BJPk

    def additions(self, tokens: int) -> int:
        """Additions of numbers for so many tokens, where projecting takes D multiply-accumulates for each G here."""
        return tokens * self.groups * self.rows_NW.shape[1]


def table_bytes(block: Block | DecoderBlock, codebooks_GKd: Tensor, dtype: torch.dtype = torch.float32) -> int:
    """``CodewordTables.bytes`` before they are made."""
    width = len(block.attn.k.weight) + len(block.attn.v.weight)
    return rows_bytes(codebooks_GKd.shape[0] * codebooks_GKd.shape[1], width, dtype)


def rows_bytes(codewords: int, width: int, dtype: torch.dtype = torch.float32) -> int:
    """Of a row of ``width`` numbers and two sums for each codeword."""
    return codewords * (width * dtype.itemsize + 2 * torch.float64.itemsize)


def tables_for(
    model: VisionTransformer | Decoder,
    quantizer: Quantizer,
    dtype: torch.dtype = torch.float32,
    cache_dir: Path | None = None,
) -> list[CodewordTables]:
    """The tables of each layer.

    Raises ValueError for another number of layers, or several num_quantizers, and what CodewordTables raises.
    """
    blocks = list(cast(Iterable[Block | DecoderBlock], model.blocks))
    if len(blocks) != quantizer.layers:
        raise ValueError(f"the quantizer has {quantizer.layers} layers; expected the model's {len(blocks)}")
    if quantizer.num_quantizers > 1:
        raise ValueError(f"the codebooks have {quantizer.num_quantizers} num_quantizers; tables allow 1")
    turns = [None] * len(blocks) if quantizer.rotation_LDD is None else quantizer.rotation_LDD
    return [
        CodewordTables(block, books_GKd, dtype, cache_dir, rotation_DD)
        for block, books_GKd, rotation_DD in zip(blocks, quantizer.codebooks_LIKd, turns, strict=True)
    ]


def _make(projection: Projection, codebooks_GKd: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """rows [G*K, W] of ``dtype``, and moments [G*K, 2], float64: sum and sum of squares of each codeword."""
    rows_GKW = projection.rows(codebooks_GKd)
    largest = float(rows_GKW.abs().amax((1, 2)).sum())
    if dtype == torch.float16 and largest > torch.finfo(dtype).max:
        allowed = f"{torch.finfo(dtype).max:g}, which float16 holds; take bfloat16 or float32"
        raise ValueError(f"a sum of rows of the codeword table may reach {largest:g}; allowed: up to {allowed}")
    books_GKd = codebooks_GKd.double()
    sums_GK1 = books_GKd @ projection.summing_D.unflatten(0, (len(books_GKd), -1))[..., None]
    moments_GK2 = torch.cat([sums_GK1, books_GKd.square().sum(-1, keepdim=True)], dim=-1)
    return {"rows": rows_GKW.flatten(0, 1).to(dtype), "moments": moments_GK2.flatten(0, 1)}


def _cached(projection: Projection, codebooks_GKd: Tensor, dtype: torch.dtype, folder: Path) -> dict[str, Tensor]:
    """As ``_make``, from a file named by a hash of all that the rows depend on; a damaged file is replaced."""
    digest = hashlib.sha256(f"{RECIPE} {dtype} {list(codebooks_GKd.shape)}".encode())
    for tensor in (projection.weight_WD, projection.summing_D, codebooks_GKd):
        digest.update(tensor.contiguous().numpy().data)
    path = folder / f"tables-{digest.hexdigest()[:16]}.safetensors"
    if path.exists():
        try:
            tables = load_file(path)
            _spot_check(tables, projection, codebooks_GKd, dtype)
            return tables
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            warnings.warn(f"{path} is damaged ({error}); making the codeword table again", stacklevel=3)
    save_tensors(_make(projection, codebooks_GKd, dtype), path)
    return load_file(path)  # the mapped file: the memory of what was made is free again


def _spot_check(tables: dict[str, Tensor], projection: Projection, codebooks_GKd: Tensor, dtype: torch.dtype) -> None:
    """Compare each group's first and last row with one made now, so that a page lost in a crash does not go unseen."""
    size = codebooks_GKd.shape[1]
    few_GKd = codebooks_GKd[:, [0, size - 1]]
    few = _make(projection, few_GKd, dtype)
    # products of two rows and of a thousand are summed in another order
    terms = float(replace(projection, weight_WD=projection.weight_WD.abs()).rows(few_GKd.abs()).max())
    few_N = (torch.arange(len(codebooks_GKd))[:, None] * size + torch.tensor([0, size - 1])).flatten()
    for name, expected in few.items():
        found, shape = tables[name], (len(codebooks_GKd) * size, expected.shape[1])
        if found.dtype != expected.dtype or found.shape != shape:
            raise ValueError(f"{name} are {found.dtype} {list(found.shape)}; expected {expected.dtype} {list(shape)}")
        found = found[few_N]
        tolerance = 4 * torch.finfo(dtype).eps * float(expected.abs().max()) + SUMMING * terms
        if not torch.allclose(found.float(), expected.float(), rtol=0, atol=max(tolerance, 1e-6)):
            raise ValueError(f"{name} have other numbers")
