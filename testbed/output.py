"""What a rank holds after a forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Output:
    """What one rank holds after a forward pass.

    hidden: normalized last states [rows, D] of content tokens ``start`` to ``start + rows``; None if this rank has
    none. logits: [classes], on the ranks that have the final answer. codes: what this rank sent, for methods that
    quantize: indices [layers, rows, groups]. messages: what it sent with a lossy codec, in order.
    """

    hidden: Tensor | None
    start: int
    logits: Tensor | None
    codes: Tensor | None = None
    messages: list[Tensor] = field(default_factory=list)
