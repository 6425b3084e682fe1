"""The ASTRA paper's cost model (arXiv 2505.19342): computation plus bits over bandwidth (docs/paper.md).

A device receives, in units of u = (N-1)/N T D numbers:

    sequence  L u
    tensor    2 L u      two all-reduces in each layer, each counted as one all-gather; a ring all-reduce moves 2 u
    block     Nb u       all-gathers of embeddings; all layers are counted as decoupled layers
    astra     L (N-1)/N T G log2 K bits; encoding and the average of class token copies are not counted

N: devices, T: tokens, D: hidden width, L: layers, Nb: blocks, G: groups, K: codewords of a codebook.

If one device needs 0.350 s, this model gives the paper's ratios for ASTRA with G = 1 at 10 Mbps: 2.64 over one device,
15.25 over block, 171.82 over sequence and 342.7 over tensor (tests/experiments/cost_model/test_analytic.py). The paper
does not say how it would count other methods or settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from testbed.device.spec import Device
from testbed.methods.astra import Astra
from testbed.methods.base import CompressedMethod, Method
from testbed.methods.block import BlockParallel
from testbed.methods.sequence import SequenceParallel
from testbed.methods.single import Single
from testbed.methods.tensor import TensorParallel
from testbed.models.shape import ModelShape


def paper_bits(method: Method, shape: ModelShape, world: int) -> float | None:
    """Bits that a device receives in a forward pass, as the paper counts them. None for what the paper leaves out."""
    others = (world - 1) / world
    match method:
        case Single():
            return 0.0
        case Astra(optimizations="paper"):
            return shape.layers * others * shape.tokens * method.codebook_spec.token_bits
        case SequenceParallel(gather="x"):
            return shape.layers * _unit_bits(method, shape, others)
        case TensorParallel(sync="ring"):
            return 2 * shape.layers * _unit_bits(method, shape, others)
        case BlockParallel(sync="ag"):
            return method.blocks * _unit_bits(method, shape, others)
        case _:
            return None


def paper_compute_s(method: Method, shape: ModelShape, devices: Sequence[Device]) -> float:
    """Seconds of computation in a forward pass, as the paper counts them. devices: by rank, all equal.

    Every multiply-accumulate takes as long as those of one device, and nothing else takes time.
    """
    alone = Single().work(shape, 0, 1)
    return devices[0].seconds(alone) * _macs(method, shape, len(devices)) / alone.macs


def _unit_bits(method: CompressedMethod, shape: ModelShape, others: float) -> int:
    """Bits of the other devices' shares of a [T, D] tensor in the method's codec."""
    return 8 * method.codec.encoded_bytes(round(others * shape.tokens * shape.hidden))


def _macs(method: Method, shape: ModelShape, world: int) -> int:
    """Multiply-accumulates of one device in a forward pass, as the paper counts them."""
    if isinstance(method, Astra):
        encode = method.codebook_size * math.ceil(shape.tokens / world) * shape.hidden if world > 1 else 0
        return method.macs(shape, 0, world) - shape.layers * encode
    if isinstance(method, BlockParallel):
        s = shape.sequence
        attend = shape.attend(s, s).macs
        layer = (shape.layer(s).macs - attend) // world + attend
        return shape.embed(shape.tokens).macs // world + shape.layers * layer + shape.head().macs
    return method.macs(shape, 0, world)
