"""Grouped vector quantization while a model is trained (ASTRA, arXiv 2505.19342; docs/paper.md, sections 1.3 to 1.5).

Codebooks follow the tokens by exponential moving averages with Laplace smoothing (van den Oord et al.,
arXiv 1711.00937, appendix A.1). A codeword that falls out of use restarts from a token of the batch. Gradients pass
straight through or by the rotation trick. Received tokens may get Gaussian noise with the statistics of the
quantization error (NAVQ). Codes are chosen by the rule of ``Quantizer``, so training and inference choose the same
codes. docs/decisions/0003 says why this is not a library.

Shape suffixes as in quantizer.py, and: B batch, T content tokens, N = B * T, E = G * K codewords of a stage.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testbed.astra.opq import PreRotation
from testbed.astra.quantizer import Quantizer
from testbed.errors import ConfigError, nearest

Gradient = Literal["straight_through", "rotation_trick"]

LAPLACE = 1e-5
# 4 MB of scores at K = 1024 stay in the cache: at G = 8 a quarter less time than all 6272 tokens in one batch
TOKENS_PER_BATCH = 1024


@dataclass(frozen=True)
class VqSettings:
    """How codebooks follow the tokens.

    decay: of the moving averages, per batch. dead_below: a codeword that is chosen less often than this fraction of
    even use restarts. noise: NAVQ's lambda, 0 for none. num_quantizers: stages of residual quantization. gradient: how
    it passes from codewords to tokens.
    """

    decay: float = 0.99
    dead_below: float = 0.1
    noise: float = 0.0
    num_quantizers: int = 1
    gradient: Gradient = "straight_through"

    def check(self) -> None:
        """Raise ConfigError (key ``vq.<setting>``) for a value outside its range."""
        for key, most, allowed in (("decay", 1, "0 or more, less than 1"), ("dead_below", 1, "0 or more, less than 1")):
            if not 0 <= getattr(self, key) < most:
                raise ConfigError(f"vq.{key}", getattr(self, key), f"must be {allowed}")
        if self.noise < 0:
            raise ConfigError("vq.noise", self.noise, "must be 0 or more")
        if self.gradient not in get_args(Gradient):
            raise ConfigError("vq.gradient", self.gradient, nearest(self.gradient, get_args(Gradient)))


class StraightThrough(torch.autograd.Function):
    """The quantized tokens forward; their gradient goes to the tokens unchanged (Bengio et al., arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor) -> Tensor:
        """``quantized``, of the shape of ``x``."""
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient for ``x``."""
        return gradients[0], None


class RotationTrick(torch.autograd.Function):
    """As ``StraightThrough``, but the gradient is rotated and scaled by what maps a token to its quantized token.

    The rotation trick (Fifty et al., arXiv 2410.06424): q = |q| / |x| * R x, where R rotates x to q in the plane of
    both and is treated as a constant. The gradient for x is |q| / |x| * R^T times that for q. Shapes [..., G, d].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor, received: Tensor) -> Tensor:
        """``received``: ``quantized``, with noise or without."""
        ctx.save_for_backward(x, quantized)
        return received.view_as(received)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient for ``x``. R = 1 - 2 r r^T + 2 q x^T for unit vectors x, q and r = (x + q) / |x + q|."""
        x, quantized = (tensor.float() for tensor in ctx.saved_tensors)
        x_unit, unit = F.normalize(x, dim=-1), F.normalize(quantized, dim=-1)
        middle, gradient = F.normalize(x_unit + unit, dim=-1), gradients[0].float()
        along_middle = (middle * gradient).sum(-1, keepdim=True)
        along_unit = (unit * gradient).sum(-1, keepdim=True)
        rotated = gradient - 2 * along_middle * middle + 2 * along_unit * x_unit
        scale = quantized.norm(dim=-1, keepdim=True) / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return (scale * rotated).to(gradients[0].dtype), None, None


def nearest_codes(x_ND: Tensor, codebooks_GKd: Tensor) -> Tensor:
    """Indices [N, G] of the nearest codewords. The CPU uses ``Quantizer.encode``; a GPU may break ties differently."""
    if x_ND.device.type == "cpu":
        quantizer = Quantizer(codebooks_GKd[None])
        return torch.cat([quantizer.encode(0, part_PD) for part_PD in x_ND.split(TOKENS_PER_BATCH)])
    x_GNd = x_ND.unflatten(1, (len(codebooks_GKd), -1)).transpose(0, 1)
    minus_half_norms_G1K = -0.5 * codebooks_GKd.square().sum(-1)[:, None]
    return torch.baddbmm(minus_half_norms_G1K, x_GNd, codebooks_GKd.mT).argmax(-1).T


class VectorQuantizer(nn.Module):
    """The codebooks of all layers in training. In eval mode codebooks do not change and noise is off.

    Counts are in units of even use (1 = 1/K of the tokens), so that no setting depends on the batch size.
    """

    codebooks_LIKd: Tensor
    counts_LIK: Tensor
    sums_LIKd: Tensor
    used_LIK: Tensor
    residual_mean_LD: Tensor
    residual_square_LD: Tensor
    batches_L: Tensor
    rotation_LDD: Tensor | None

    def __init__(self, codebooks_LIKd: Tensor, settings: VqSettings | None = None, rotation_LDD: Tensor | None = None):
        """codebooks_LIKd: initial codebooks, float32. rotation_LDD: the rotation before quantization, which is not
        trained. Raises ConfigError for settings outside their range, ValueError for another shape or type.
        """
        super().__init__()
        self.settings = VqSettings() if settings is None else settings
        self.settings.check()
        start = Quantizer(codebooks_LIKd, self.settings.num_quantizers, rotation_LDD)  # checks shape and type
        self.groups, self.codebook_size, self.hidden = start.groups, start.codebook_size, start.hidden
        self.register_buffer("codebooks_LIKd", codebooks_LIKd.clone())
        self.register_buffer("counts_LIK", torch.ones(codebooks_LIKd.shape[:3]))
        self.register_buffer("sums_LIKd", codebooks_LIKd.clone())
        self.register_buffer("used_LIK", torch.zeros(codebooks_LIKd.shape[:3], dtype=torch.int64))
        self.register_buffer("residual_mean_LD", torch.zeros(start.layers, start.hidden))
        self.register_buffer("residual_square_LD", torch.zeros(start.layers, start.hidden))
        self.register_buffer("batches_L", torch.zeros(start.layers))
        self.register_buffer("rotation_LDD", rotation_LDD)

    def forward(self, layer: int, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """(the tokens as other devices receive them [B, T, D], commitment: mean over tokens of |X - sg(X̂)|^2).

        In training mode, updates the codebooks and the statistics of the quantization error.
        """
        if self.rotation_LDD is None:
            return self._quantize(layer, x_BTD)
        rotation_DD = self.rotation_LDD[layer]
        with torch.autocast(x_BTD.device.type, enabled=False):  # in float32, as devices rotate
            received_BTD, commitment = self._quantize(layer, x_BTD.float() @ rotation_DD.T)
            return (received_BTD @ rotation_DD).to(x_BTD.dtype), commitment

    def _quantize(self, layer: int, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """``forward`` for rotated tokens."""
        with torch.no_grad(), torch.autocast(x_BTD.device.type, enabled=False):
            x_ND = x_BTD.detach().float().flatten(0, 1)
            quantized_ND = torch.zeros_like(x_ND)
            for stage in range(self.settings.num_quantizers):
                residual_ND = x_ND - quantized_ND if stage else x_ND
                codes_NG = nearest_codes(residual_ND, self.codebooks_LIKd[layer, self._stage(stage)])
                quantized_ND = quantized_ND + self._codewords(layer, stage, codes_NG)
                if self.training:
                    self._update(layer, stage, residual_ND, codes_NG)
            received_ND = quantized_ND
            if self.training:
                self._observe_residual(layer, x_ND - quantized_ND)
                if self.settings.noise:
                    received_ND = quantized_ND + self.settings.noise * self.draw_residual(layer, len(x_ND))
        commitment = (x_BTD - quantized_ND.view_as(x_BTD)).square().sum(-1).mean()
        return self._with_gradient(x_BTD, quantized_ND.view_as(x_BTD), received_ND.view_as(x_BTD)), commitment

    @property
    def pre_rotation(self) -> PreRotation:
        """The kind of rotation before quantization."""
        return "none" if self.rotation_LDD is None else "pca"

    def draw_residual(self, layer: int, count: int) -> Tensor:
        """Gaussian noise [count, D] with the running mean and variance of X - X̂, from the global random generator."""
        mean_D = self.residual_mean_LD[layer]
        std_D = (self.residual_square_LD[layer] - mean_D.square()).clamp(min=0).sqrt()
        return mean_D + std_D * torch.randn(count, len(mean_D), device=mean_D.device)

    def describe(self) -> dict[str, Any]:
        """All settings, as JSON data."""
        return {
            "groups": self.groups,
            "codebook_size": self.codebook_size,
            "pre_rotation": self.pre_rotation,
            **asdict(self.settings),
        }

    def perplexity(self) -> Tensor:
        """Codewords in use [L, I]: exp(entropy) of all choices since ``reset_usage``; 1 to K, NaN without choices."""
        p_LIK = self.used_LIK / self.used_LIK.sum(-1, keepdim=True)
        return torch.special.entr(p_LIK).sum(-1).exp()

    def reset_usage(self) -> None:
        """Start to count the choices for ``perplexity`` from zero."""
        self.used_LIK.zero_()

    def _with_gradient(self, x_BTD: Tensor, quantized_BTD: Tensor, received_BTD: Tensor) -> Tensor:
        """``received_BTD``, whose gradient goes to the tokens ``x_BTD`` as ``settings.gradient`` says."""
        if self.settings.gradient == "straight_through":
            joined_BTD = StraightThrough.apply(x_BTD, received_BTD)
        else:
            grouped = (tensor.unflatten(-1, (self.groups, -1)) for tensor in (x_BTD, quantized_BTD, received_BTD))
            joined_BTD = RotationTrick.apply(*grouped).flatten(-2)
        assert isinstance(joined_BTD, Tensor)
        return joined_BTD

    def _stage(self, stage: int) -> slice:
        """The codebooks of a stage."""
        return slice(stage * self.groups, (stage + 1) * self.groups)

    def _codewords(self, layer: int, stage: int, codes_NG: Tensor) -> Tensor:
        """The codewords [N, D] of a stage's indices."""
        codebooks_GKd = self.codebooks_LIKd[layer, self._stage(stage)]
        return F.embedding(self._flat(codes_NG), codebooks_GKd.flatten(0, 1)).flatten(1)

    def _flat(self, codes_NG: Tensor) -> Tensor:
        """Indices into the E codewords of all groups of a stage."""
        return codes_NG + torch.arange(self.groups, device=codes_NG.device) * self.codebook_size

    def _observe_residual(self, layer: int, residual_ND: Tensor) -> None:
        """Update the running statistics with a batch. The first batches weigh equally, so there is no bias to zero."""
        self.batches_L[layer] += 1
        weight = torch.clamp(1 / self.batches_L[layer], min=1 - self.settings.decay)
        self.residual_mean_LD[layer].lerp_(residual_ND.mean(0), weight)
        self.residual_square_LD[layer].lerp_(residual_ND.square().mean(0), weight)

    def _update(self, layer: int, stage: int, x_ND: Tensor, codes_NG: Tensor) -> None:
        """Move a stage's codewords towards the means of the tokens that chose them, and restart dead codewords."""
        own = self._stage(stage)
        codebooks_GKd, counts_GK, sums_GKd = (
            buffer[layer, own] for buffer in (self.codebooks_LIKd, self.counts_LIK, self.sums_LIKd)
        )
        size, width = codebooks_GKd.shape[1:]
        flat_E = self._flat(codes_NG).flatten()
        x_Ed = x_ND.reshape(-1, width)
        used_GK = torch.bincount(flat_E, minlength=self.groups * size).view_as(counts_GK)
        sum_GKd = torch.zeros_like(sums_GKd).view(-1, width).index_add_(0, flat_E, x_Ed).view_as(sums_GKd)
        self.used_LIK[layer, own] += used_GK
        even, new = size / len(x_ND), 1 - self.settings.decay
        counts_GK.lerp_(used_GK * even, new)
        sums_GKd.lerp_(sum_GKd * even, new)
        # a candidate for every codeword, not for the dead ones only: counting those would make a GPU synchronize
        dead_GK = counts_GK < self.settings.dead_below
        candidate_GK = torch.randint(len(x_ND), dead_GK.shape, device=dead_GK.device)
        token_GKd = x_Ed[candidate_GK * self.groups + torch.arange(self.groups, device=dead_GK.device)[:, None]]
        counts_GK.masked_fill_(dead_GK, 1)
        sums_GKd.copy_(torch.where(dead_GK[..., None], token_GKd, sums_GKd))
        total_G1 = counts_GK.sum(-1, keepdim=True)
        smoothed_GK = (counts_GK + LAPLACE) / (total_G1 + size * LAPLACE) * total_G1
        codebooks_GKd.copy_(sums_GKd / smoothed_GK[..., None])
