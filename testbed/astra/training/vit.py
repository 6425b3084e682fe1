"""A Vision Transformer under ASTRA on N devices in one process, batched and differentiable, for training.

docs/paper.md, sections 1.2, 1.4 and 1.6, describes the method.

Every layer has the exact rows X and the quantized content rows X̂. A mask says which of them a query sees. The result
equals that of ``reference_vit.simulate``, an independent implementation for one image.

A *distributed* class token has a copy on each device. A copy attends to its device's rows exactly and to all other
rows quantized, and the copies are averaged before the head. A *single* class token is on device 0 only. It attends to
device 0's rows exactly and to all other rows quantized. Only device 0 sees it, because class tokens are never sent.

Shape suffixes: B batch, S = C + T sequence, C copies of the class token, T content tokens, D hidden, N devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.int8_tokens import check_int8_tokens, with_int8_tokens
from testbed.astra.training.ema_quantizer import VectorQuantizer
from testbed.errors import ConfigError, nearest
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer

ClassTokens = Literal["distributed", "single"]


@dataclass(frozen=True)
class Layout:
    """The attention mask. ``visible`` [S, S + T] is True where a query sees an exact row (first S) or a quantized row.

    class_copies: how many first rows of the sequence are class tokens, which are never quantized.
    """

    class_copies: int
    visible: Tensor


def device_layout(shares: Sequence[int], class_owners: Sequence[int]) -> Layout:
    """The layout of devices that own ``shares`` content tokens each, in order.

    class_owners: the device of each class token, in their order before the content. A causal model has none, and masks
    later rows in both halves as well.
    """
    owner_T = torch.arange(len(shares)).repeat_interleave(torch.tensor(list(shares)))
    owner_S = torch.cat([torch.tensor(list(class_owners), dtype=torch.int64), owner_T])
    exact_SS = owner_S[:, None] == owner_S[None, :]
    quantized_ST = owner_S[:, None] != owner_T[None, :]
    return Layout(len(class_owners), torch.cat([exact_SS, quantized_ST], dim=1))


def random_shares(tokens: int, devices: int, generator: torch.Generator | None = None) -> list[int]:
    """Shares of ``tokens`` between cut points drawn uniformly; each device has one token or more.

    generator: None for the global one. Raises ValueError for more devices than tokens.
    """
    if not 1 <= devices <= tokens:
        raise ValueError(f"{tokens} tokens cannot be cut for {devices} devices; allowed: 1 to {tokens}")
    inner = 1 + torch.randperm(tokens - 1, generator=generator)[: devices - 1].sort().values
    cuts = [0, *inner.tolist(), tokens]
    return [stop - start for start, stop in zip(cuts, cuts[1:], strict=False)]


def mixed_attention(block: Block, x_BSD: Tensor, quantized_BTD: Tensor, visible: Tensor) -> Tensor:
    """Attention's weighted sum [B, S, D], before the output projection; one softmax over exact and quantized rows.

    x_BSD: the layer's input before its norm. quantized_BTD: its content rows as other devices receive them. visible:
    see ``Layout``.

    Concatenated keys under one mask are faster than a choice between two score matrices. One core, forward and
    backward, B x S = 128 x 53: 34 ms against 43; 32 x 201: 234 against 276; 16 x 261: 205 against 247; the plain model
    takes 18, 146 and 103. At 128 x 20 it is 9 against 8.
    """
    rows_BRD = block.norm1(torch.cat([x_BSD, quantized_BTD], dim=1))
    q_BHSK = block.attn.query(rows_BRD[:, : x_BSD.shape[1]])
    return block.attn.mix(q_BHSK, *block.attn.keys_values(rows_BRD), visible)


@dataclass(frozen=True)
class Forward:
    """The result of a forward pass.

    logits: [B, classes], or [B, T, vocabulary] of a decoder. commitment: scalar, the sum over layers (see
    VectorQuantizer.forward); 0 where nothing is quantized. states: the content rows [B, T, D] after each layer, if
    requested.
    """

    logits: Tensor
    commitment: Tensor
    states: list[Tensor]


class Student(nn.Module):
    """A model under ASTRA on any number of devices, as training and evaluation use it.

    model: the plain model. quantizer: None for the uncompressed baseline, which runs on one device only. int8_tokens:
    how many tokens each device sends in int8 in addition to their codes (int8_tokens.py).
    """

    model: nn.Module
    quantizer: VectorQuantizer | None
    int8_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Content tokens, which are split over the devices."""
        raise NotImplementedError

    @property
    def codebook_spec(self) -> CodebookSpec | None:
        """The settings of its codebooks; None where it has none."""
        quantizer = self.quantizer
        if quantizer is None:
            return None
        num_quantizers = quantizer.settings.num_quantizers
        return CodebookSpec(quantizer.groups, quantizer.codebook_size, num_quantizers, quantizer.pre_rotation)

    def describe(self) -> dict[str, Any]:
        """All settings, as JSON data."""
        raise NotImplementedError


def check_codebooks(quantizer: VectorQuantizer | None, layers: int, width: int) -> None:
    """Raise ValueError for codebooks of another number of ``layers`` or of another ``width``."""
    if quantizer is None:
        return
    found = len(quantizer.codebooks_LIKd)
    if (found, quantizer.hidden) != (layers, width):
        described = f"{found} layers of {quantizer.hidden} numbers"
        raise ValueError(f"codebooks are for {described}; the model has {layers} x {width}")


def check_shares(shares: Sequence[int], tokens: int, quantizer: VectorQuantizer | None) -> None:
    """Raise ValueError for shares that do not cover the tokens, and for several devices without a quantizer."""
    if sum(shares) != tokens or min(shares) < 1:
        raise ValueError(f"shares are {list(shares)}; expected positive numbers of sum {tokens}")
    if len(shares) > 1 and quantizer is None:
        raise ValueError(f"{len(shares)} devices need a quantizer")


class AstraVit(Student):
    """A Vision Transformer on any number of devices."""

    model: VisionTransformer

    def __init__(
        self,
        model: VisionTransformer,
        quantizer: VectorQuantizer | None = None,
        class_tokens: ClassTokens = "distributed",
        int8_tokens: int = 0,
    ):
        """Raises ConfigError for an unknown kind of class tokens or fewer than 0 ``int8_tokens``, ValueError for a
        quantizer that does not fit the model.
        """
        super().__init__()
        if class_tokens not in get_args(ClassTokens):
            raise ConfigError("astra.class_tokens", class_tokens, nearest(class_tokens, get_args(ClassTokens)))
        check_codebooks(quantizer, model.shape.layers, model.shape.hidden)
        check_int8_tokens(int8_tokens)
        self.model, self.quantizer = model, quantizer
        self.class_tokens: ClassTokens = class_tokens
        self.int8_tokens = int8_tokens

    @property
    def tokens(self) -> int:
        return self.model.config.tokens

    def describe(self) -> dict[str, Any]:
        quantizer = None if self.quantizer is None else self.quantizer.describe()
        own = {"class_tokens": self.class_tokens, "int8_tokens": self.int8_tokens}
        return {"model": asdict(self.model.config), **own, "quantizer": quantizer}

    def forward(self, pixels_BCHW: Tensor, shares: Sequence[int], keep_states: bool = False) -> Forward:
        """One pass of images [B, 3, height, width] on ``len(shares)`` devices with ``shares`` content tokens each.

        Raises ValueError for shares that do not cover the tokens, and for several devices without a quantizer.
        """
        world = len(shares)
        check_shares(shares, self.tokens, self.quantizer)
        owners = range(world) if self.class_tokens == "distributed" else range(1)
        layout = device_layout(shares, owners)
        copies, visible = layout.class_copies, layout.visible.to(pixels_BCHW.device)
        content_BTD = self.model.embed_content(pixels_BCHW)
        x_BSD = torch.cat([self.model.embed_class().expand(len(content_BTD), copies, -1), content_BTD], dim=1)
        commitment, states = x_BSD.new_zeros(()), []
        for layer, block in enumerate(cast(Iterable[Block], self.model.blocks)):
            if world == 1 or self.quantizer is None:
                x_BSD = block(x_BSD)
            else:
                quantized_BTD, distance = self.quantizer(layer, x_BSD[:, copies:])
                commitment = commitment + distance
                if self.int8_tokens:
                    quantized_BTD = with_int8_tokens(x_BSD[:, copies:], quantized_BTD, shares, self.int8_tokens)
                x_BSD = block.finish(x_BSD, mixed_attention(block, x_BSD, quantized_BTD, visible))
            if keep_states:
                states.append(x_BSD[:, copies:])
        class_BD = self.model.norm(x_BSD[:, :copies]).mean(1)
        return Forward(self.model.classify(class_BD), commitment, states)
