"""What the ASTRA paper counts of each method that it compares (arXiv 2505.19342), beside what is really done.

Its latency is compute plus bits over bandwidth. What a device receives, in units u = (N-1)/N T D numbers:

    sequence  L u
    tensor    2 L u      two all-reduces a layer, each counted as one all-gather; a ring all-reduce moves twice that
    block     Nb u       gathered embeddings; all layers computed as if they were decoupled
    astra     L (N-1)/N T G log2 K bits; encoding is not counted, nor are the class copies that are averaged

With one device at 0.350 s these reproduce its 2.64x (G = 1, 10 Mbps), 15.25x, 171.82x and 342.7x: tests/. It does not
say how other methods, or other settings of these, would be counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from testbed.device.spec import Device
from testbed.methods.astra import Astra
from testbed.methods.base import CodedMethod, Method
from testbed.methods.block import BlockParallel
from testbed.methods.sequence import SequenceParallel
from testbed.methods.single import Single
from testbed.methods.tensor import TensorParallel
from testbed.models.shape import ModelShape


def paper_bits(method: Method, shape: ModelShape, world: int) -> float | None:
    """Bits that a device receives in a forward pass as the paper counts them; None for what it does not compare."""
    others = (world - 1) / world
    match method:
        case Single():
            return 0.0
        case Astra(optimizations="paper"):
            return (
                shape.layers
                * others
                * shape.tokens
                * method.num_quantizers
                * method.groups
                * math.log2(method.codebook_size)
            )
        case SequenceParallel(gather="x"):
            return shape.layers * _unit_bits(method, shape, others)
        case TensorParallel(sync="ring"):
            return 2 * shape.layers * _unit_bits(method, shape, others)
        case BlockParallel(sync="ag"):
            return method.blocks * _unit_bits(method, shape, others)
        case _:
            return None


def paper_compute_s(method: Method, shape: ModelShape, devices: Sequence[Device]) -> float:
    """Seconds of computation in a forward pass as the paper counts it; devices: all alike."""
    return devices[0].seconds(_macs(method, shape, len(devices)))


def _unit_bits(method: CodedMethod, shape: ModelShape, others: float) -> int:
    """Everybody else's share of [T, D] numbers in the method's number format."""
    return 8 * method.codec.encoded_bytes(round(others * shape.tokens * shape.hidden))


def _macs(method: Method, shape: ModelShape, world: int) -> int:
    """Multiply-accumulates of a device."""
    if isinstance(method, Astra):
        encode = method.codebook_size * math.ceil(shape.tokens / world) * shape.hidden if world > 1 else 0
        return method.macs(shape, 0, world) - shape.layers * encode
    if isinstance(method, BlockParallel):
        s = shape.sequence
        products = shape.query_macs(s) + shape.key_value_macs(s) + shape.finish_macs(s)
        layer = products // world + shape.attend_macs(s, s)
        return shape.embed_macs(shape.tokens) // world + shape.layers * layer + shape.head_macs()
    return method.macs(shape, 0, world)
