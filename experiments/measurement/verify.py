"""Verification of a method: outputs, bytes, memory traffic and MACs of a forward pass against their references."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.measurement.model_inputs import Assets
from testbed.astra.codebooks import load_codebooks
from testbed.astra.quantizer import Quantizer
from testbed.astra.reference_decoder import simulate_decoder
from testbed.astra.reference_vit import simulate
from testbed.cluster.worker import ForwardTiming
from testbed.methods.base import Method
from testbed.models.vit import VisionTransformer
from testbed.output import Output

TOLERANCE = 1e-4  # largest allowed difference of a hidden state or logit
# The largest allowed difference over the reference's largest magnitude, where that allows more. SmolLM2's magnitudes
# reach 45, and one process in float32 differs by 4e-5 to 7e-5 from the same in float64 with the same codes.
ROUNDING = 1e-5


@dataclass
class Verification:
    """The outcome for one method variant. ties: codes that differ from the simulation's because of rounding."""

    max_abs_err: float
    ties: int
    fault: str  # empty if there is none

    @property
    def ok(self) -> bool:
        return not self.fault


def verify(method: Method, world: int, ranks: list[tuple[Output, ForwardTiming]], assets: Assets) -> Verification:
    """Compare the result of each of ``world`` ranks, after a pass with real arithmetic, with the reference.

    The reference is the plain model for exact methods and the one-process simulation for all others.
    """
    shape = assets.model.shape
    outputs = [output for output, _ in ranks]
    hidden, logits, ties = assets.hidden, assets.logits, 0
    if not method.exact:
        try:
            hidden, logits, ties = _simulated(method, world, outputs, assets)
        except ValueError as error:
            return Verification(float("nan"), 0, f"what was sent differs from the simulation's: {error}")
    error, fault = compare_outputs(outputs, hidden, logits)
    formula = method.received_bits(shape, world)
    for rank, (_, done) in enumerate(ranks):
        if 8 * done.received_bytes != formula[rank]:
            fault = fault or f"rank {rank} received {8 * done.received_bytes} bits, the formula says {formula[rank]}"
        moved = method.moved_bytes(shape, rank, world)
        if done.moved_bytes != moved:
            fault = fault or f"rank {rank} moved {done.moved_bytes} bytes of memory, the formula says {moved}"
        if done.macs != method.macs(shape, rank, world):
            fault = fault or f"rank {rank} ran {done.macs} MACs, the formula says {method.macs(shape, rank, world)}"
    return Verification(error, ties, fault)


def _simulated(method: Method, world: int, outputs: list[Output], assets: Assets) -> tuple[Tensor, Tensor, int]:
    spec = method.codebook_spec
    if spec is None:
        assert isinstance(assets.model, VisionTransformer)  # causal models run on exact methods and ASTRA only
        return *method.simulate(assets.model, assets.inputs, world, [output.messages for output in outputs]), 0
    codebooks_LIKd, rotation_LDD = load_codebooks(assets.codebooks[spec])
    quantizer = Quantizer(codebooks_LIKd, spec.num_quantizers, rotation_LDD)
    codes = None if world == 1 else torch.cat([o.codes for o in outputs if o.codes is not None], dim=1)
    shares = method.shares(assets.model.shape.tokens, world)
    if isinstance(assets.model, VisionTransformer):
        done = simulate(assets.model, quantizer, assets.inputs, shares, codes)
    else:
        done = simulate_decoder(assets.model, quantizer, spec, assets.inputs, shares, codes)
    return done.hidden, done.logits, done.ties


def compare_outputs(outputs: list[Output], hidden: Tensor, logits: Tensor) -> tuple[float, str]:
    """(largest difference, fault). Some rank must hold each content row, and some rank the logits."""
    covered = torch.zeros(hidden.shape[0], dtype=torch.bool)
    errors = []
    for output in outputs:
        if output.hidden is not None:
            stop = output.start + output.hidden.shape[0]
            covered[output.start : stop] = True
            errors.append((output.hidden - hidden[output.start : stop]).abs().max().item())
        if output.logits is not None:
            errors.append((output.logits - logits).abs().max().item())
    if not covered.all() or all(output.logits is None for output in outputs):
        return float("nan"), "no rank holds part of the result"
    error = torch.tensor(errors).max().item()  # NaN if any is
    allowed = max(TOLERANCE, ROUNDING * max(hidden.abs().max().item(), logits.abs().max().item()))
    # written so that NaN fails
    return error, "" if error <= allowed else f"outputs differ by {error:.2e}, allowed is {allowed:.2g}"
