"""The result of a forward pass on one rank."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Output:
    """The result of a forward pass on one rank.

    hidden: [rows, D], normalized final hidden states of the content tokens ``start`` to ``start + rows``; None if this
    rank has none. logits: [classes], on the ranks that compute them. codes: [layers, rows, groups], the codeword
    indices that this rank sent; None if the method does not quantize. messages: the messages that this rank sent with a
    lossy codec, in order.
    """

    hidden: Tensor | None
    start: int
    logits: Tensor | None
    codes: Tensor | None = None
    messages: list[Tensor] = field(default_factory=list)
