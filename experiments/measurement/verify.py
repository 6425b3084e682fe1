"""Verification of a method: outputs, bytes and kernels of a forward pass against their references.

Outputs are compared with the reference in float64, which computes with the codes and messages that the ranks sent. How
far rounding may move them is not a constant: it is measured on the one-process reference in float32, which rounds as
often and differs only in the order of its sums (docs/decisions/0019-verification-bound.md).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.measurement.model_inputs import Assets, Model, Result
from testbed.astra.codebooks import load_codebooks
from testbed.astra.quantizer import Quantizer
from testbed.astra.reference_decoder import simulate_decoder
from testbed.astra.reference_vit import simulate
from testbed.cluster.worker import ForwardTiming
from testbed.methods.base import Method
from testbed.models.vit import VisionTransformer
from testbed.output import Output
from testbed.work import Kernel

FACTOR = 4.0  # rounding errors of another order of sums, over those of one process in float32
FLOOR_ULPS = 8  # allowed beyond that, in units of float32 in the last place of the largest magnitude


@dataclass
class Verification:
    """The outcome for one method variant.

    max_abs_err: largest difference from the reference in float64. allowed_abs_err: its limit. Hidden states and logits
    have a limit each; both figures are of those that are nearer to theirs. ties: codes that differ from the
    simulation's because of rounding.
    """

    max_abs_err: float
    allowed_abs_err: float
    ties: int
    fault: str  # empty if there is none

    @property
    def ok(self) -> bool:
        return not self.fault


def verify(method: Method, world: int, ranks: list[tuple[Output, ForwardTiming]], assets: Assets) -> Verification:
    """Compare the result of each of ``world`` ranks, after a pass with real arithmetic, with the reference.

    The reference is the plain model for exact methods and the one-process simulation for all others. The simulation
    needs a copy of the model in float64, which is freed afterwards: 700 MB for ViT-Base.
    """
    shape = assets.model.shape
    outputs = [output for output, _ in ranks]
    result, exact, ties = assets.result, assets.exact, 0
    if not method.exact:
        try:
            result, ties = _simulated(method, world, outputs, assets, assets.model, assets.inputs)
            exact, _ = _simulated(method, world, outputs, assets, *assets.in_float64)
        except ValueError as error:
            fault = f"what was sent differs from the simulation's: {error}"
            return Verification(float("nan"), float("nan"), 0, fault)
    error, allowed, fault = compare_outputs(outputs, result, exact)
    formula = method.received_bits(shape, world)
    for rank, (_, done) in enumerate(ranks):
        if 8 * done.received_bytes != formula[rank]:
            fault = fault or f"rank {rank} received {8 * done.received_bytes} bits, the formula says {formula[rank]}"
        fault = fault or _compare_work(rank, done.kernels, method.work(shape, rank, world).counts())
    return Verification(error, allowed, ties, fault)


def _simulated(
    method: Method, world: int, outputs: list[Output], assets: Assets, model: Model, inputs: Tensor
) -> tuple[Result, int]:
    """(result of the ranks in one process, in the model's precision, with what they sent; ties)."""
    spec = method.codebook_spec
    if spec is None:
        assert isinstance(model, VisionTransformer)  # causal models run on exact methods and ASTRA only
        return Result(*method.simulate(model, inputs, world, [output.messages for output in outputs])), 0
    codebooks_LIKd, rotation_LDD = load_codebooks(assets.codebooks[spec])
    quantizer = Quantizer(codebooks_LIKd, spec.num_quantizers, rotation_LDD)
    codes = None if world == 1 else torch.cat([o.codes for o in outputs if o.codes is not None], dim=1)
    shares = method.shares(model.shape.tokens, world)
    if isinstance(model, VisionTransformer):
        done = simulate(model, quantizer, inputs, shares, codes)
    else:
        done = simulate_decoder(model, quantizer, spec, inputs, shares, codes)
    return Result(done.hidden, done.logits), done.ties


def compare_outputs(outputs: list[Output], result: Result, exact: Result) -> tuple[float, float, str]:
    """(largest difference from ``exact``, its limit, fault), of hidden states or logits: those nearer to their limit.

    result: of one process in float32. exact: the same in float64. Some rank must hold each content row, and some rank
    the logits.
    """
    covered = torch.zeros(exact.hidden.shape[0], dtype=torch.bool)
    hidden_errors, logit_errors = [], []
    for output in outputs:
        if output.hidden is not None:
            stop = output.start + output.hidden.shape[0]
            covered[output.start : stop] = True
            hidden_errors.append(_largest(output.hidden - exact.hidden[output.start : stop]))
        if output.logits is not None:
            logit_errors.append(_largest(output.logits - exact.logits))
    if not covered.all() or not logit_errors:
        return float("nan"), float("nan"), "no rank holds part of the result"
    errors = [torch.tensor(each).max().item() for each in (hidden_errors, logit_errors)]  # NaN if any is
    limits = allowed_errors(result, exact)
    # Written so that NaN counts as the farthest beyond its limit, and fails.
    error, allowed = max(zip(errors, limits, strict=True), key=lambda pair: (not pair[0] <= pair[1], pair[0] / pair[1]))
    return error, allowed, "" if error <= allowed else f"outputs differ by {error:.2e}, allowed is {allowed:.2g}"


def allowed_errors(result: Result, exact: Result) -> list[float]:
    """The limits of hidden states and of logits.

    Rounding errors are in proportion to magnitudes. The relative error of one process in float32, the larger one of
    both, therefore counts for both: a handful of logits may be near the exact ones by chance.
    """
    largest = [_largest(tensor) for tensor in exact]
    pairs = zip(result, exact, largest, strict=True)
    relative = max(_largest(single - double) / scale if scale else 0.0 for single, double, scale in pairs)
    share = FACTOR * relative + FLOOR_ULPS * torch.finfo(torch.float32).eps
    return [max(share * scale, torch.finfo(torch.float32).tiny) for scale in largest]


def _compare_work(rank: int, ran: Counter[Kernel], formula: Counter[Kernel]) -> str:
    """A fault unless a rank ran exactly the kernels of its method's formula; "" if it did."""
    if ran == formula:
        return ""
    more, less = ran - formula, formula - ran
    return f"rank {rank} ran kernels that its formula lacks: {dict(more)}; and not these of it: {dict(less)}"


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item()
