"""Is what came out of the emulated devices right? Outputs, bytes and MACs against their references."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.measurement.vit_inputs import Assets
from testbed.astra.codebooks import load_codebooks
from testbed.astra.quantizer import Quantizer
from testbed.astra.reference_decoder import simulate_decoder
from testbed.astra.reference_vit import simulate
from testbed.cluster.worker import ForwardTiming
from testbed.methods.base import Method
from testbed.models.vit import VisionTransformer
from testbed.output import Output

TOLERANCE = 1e-4  # largest difference of any hidden state or logit ...
# ... or so much of the reference's largest number, if that is more. SmolLM2's reach 45, and what one process computes
# in float32 is itself 4e-5 to 7e-5 off the same in float64 with the same codes.
ROUNDING = 1e-5


@dataclass
class Verification:
    """Outcome for one method variant. ties: codes that rounding decided otherwise than in the simulation."""

    max_abs_err: float
    ties: int
    fault: str  # empty if all is right

    @property
    def ok(self) -> bool:
        return not self.fault


def verify(method: Method, world: int, ranks: list[tuple[Output, ForwardTiming]], assets: Assets) -> Verification:
    """Compare what each rank of ``world`` holds after a pass with real arithmetic with the reference.

    Exact methods are held to the plain model; the others to their one-process simulation.
    """
    shape = assets.model.shape
    outputs = [output for output, _ in ranks]
    hidden, logits, ties = assets.hidden, assets.logits, 0
    if not method.exact:
        try:
            hidden, logits, ties = _simulated(method, world, outputs, assets)
        except ValueError as error:
            return Verification(float("nan"), 0, f"what was sent differs from the simulation's: {error}")
    error, fault = _compare(outputs, hidden, logits)
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
    if not method.codebook_size:
        assert isinstance(assets.model, VisionTransformer)  # no other model comes to these methods
        return *method.simulate(assets.model, assets.inputs, world, [output.messages for output in outputs]), 0
    codebooks, pre_rotation = load_codebooks(assets.codebooks[method.codebook_key])
    quantizer = Quantizer(codebooks, method.num_quantizers, pre_rotation)
    codes = None if world == 1 else torch.cat([o.codes for o in outputs if o.codes is not None], dim=1)
    shares = method.shares(assets.model.shape.tokens, world)
    if isinstance(assets.model, VisionTransformer):
        done = simulate(assets.model, quantizer, assets.inputs, shares, codes)
    else:
        _, _, quantized, anchor_tokens, *_ = method.codebook_key
        done = simulate_decoder(assets.model, quantizer, assets.inputs, shares, codes, quantized, anchor_tokens)
    return done.hidden, done.logits, done.ties


def _compare(outputs: list[Output], hidden: Tensor, logits: Tensor) -> tuple[float, str]:
    """(largest difference, fault): every content row must be held by some rank, and the logits too."""
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
