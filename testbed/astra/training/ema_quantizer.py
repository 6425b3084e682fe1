"""Grouped vector quantization while a model is trained (ASTRA, arXiv 2505.19342; docs/paper.md, sections 1.3 to 1.5).

Codebooks follow the tokens by exponential moving averages with Laplace smoothing (van den Oord et al.,
arXiv 1711.00937, appendix A.1), codewords that fall out of use start again from a token of the batch, gradients pass
straight through or turned and stretched as the token was (rotation trick), and received tokens may be blurred by noise
of the residual's statistics (NAVQ). Codes are chosen by the rule of ``Quantizer``, so what is trained here is what is
sent there. Why not a library: docs/decisions/0003.

Shape suffixes as in quantizer.py, and: B batch, T content tokens, N = B * T, E = G * K codewords of a level.
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
TOKENS_AT_ONCE = (
    1024  # 4 MB of scores at K = 1024 stay in the cache: a quarter less time at G = 8 than all 6272 at once
)


@dataclass(frozen=True)
class VqSettings:
    """How codebooks follow the tokens.

    decay: of the moving averages, a batch. dead_below: a codeword that is chosen less often than this fraction of
    even use starts again. noise: NAVQ's lambda, 0 for none. num_quantizers: how many codebooks quantize one after
    another what the one before left over. gradient: how it passes from codewords to tokens.
    """

    decay: float = 0.99
    dead_below: float = 0.1
    noise: float = 0.0
    num_quantizers: int = 1
    gradient: Gradient = "straight_through"

    def check(self) -> None:
        """Raise ConfigError for values that cannot be."""
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


class Rotated(torch.autograd.Function):
    """As ``StraightThrough``, but the gradient is turned and stretched as the quantized tokens are against the tokens.

    The rotation trick (Fifty et al., arXiv 2410.06424): q = |q| / |x| * R x, where R turns x to q in the plane of both
    and counts as a constant, so the gradient for x is |q| / |x| * R^T times the one for q. Shapes [..., G, d].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor, known: Tensor) -> Tensor:
        """``known``: ``quantized``, or that with noise."""
        ctx.save_for_backward(x, quantized)
        return known.view_as(known)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient for ``x``. R = 1 - 2 r r^T + 2 q x^T for unit vectors x, q and r = (x + q) / |x + q|."""
        x, quantized = (tensor.float() for tensor in ctx.saved_tensors)
        x_unit, unit = F.normalize(x, dim=-1), F.normalize(quantized, dim=-1)
        middle, gradient = F.normalize(x_unit + unit, dim=-1), gradients[0].float()
        along_middle = (middle * gradient).sum(-1, keepdim=True)
        along_unit = (unit * gradient).sum(-1, keepdim=True)
        turned = gradient - 2 * along_middle * middle + 2 * along_unit * x_unit
        stretch = quantized.norm(dim=-1, keepdim=True) / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return (stretch * turned).to(gradients[0].dtype), None, None


def nearest_codes(x_ND: Tensor, books_GKd: Tensor) -> Tensor:
    """Indices [N, G] of the nearest codewords. On the CPU by ``Quantizer.encode``; a GPU may break ties otherwise."""
    if x_ND.device.type == "cpu":
        quantizer = Quantizer(books_GKd[None])
        return torch.cat([quantizer.encode(0, part_PD) for part_PD in x_ND.split(TOKENS_AT_ONCE)])
    x_GNd = x_ND.unflatten(1, (len(books_GKd), -1)).transpose(0, 1)
    minus_half_norms_G1K = -0.5 * books_GKd.square().sum(-1)[:, None]
    return torch.baddbmm(minus_half_norms_G1K, x_GNd, books_GKd.mT).argmax(-1).T


class VectorQuantizer(nn.Module):
    """The codebooks of all layers in training. In eval mode nothing moves and nothing is noised.

    Counts are in units of even use (1 = a K-th of the tokens), so that no setting depends on the size of a batch.
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
        """codebooks_LIKd: where to start, float32, such as ``train_codebooks`` gives. Raises ConfigError.

        rotation_LDD: by which tokens are turned before, and which training leaves as it is.
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
        """(what other devices know of the tokens [B, T, D], commitment: mean over tokens of |X - sg(X̂)|^2).

        In training mode the codebooks and the residual's statistics take the tokens in.
        """
        if self.rotation_LDD is None:
            return self._quantize(layer, x_BTD)
        rotation_DD = self.rotation_LDD[layer]
        with torch.autocast(x_BTD.device.type, enabled=False):  # in full precision, as devices turn
            known_BTD, commitment = self._quantize(layer, x_BTD.float() @ rotation_DD.T)
            return (known_BTD @ rotation_DD).to(x_BTD.dtype), commitment

    def _quantize(self, layer: int, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """``forward`` of tokens that have been turned."""
        with torch.no_grad(), torch.autocast(x_BTD.device.type, enabled=False):
            x_ND = x_BTD.detach().float().flatten(0, 1)
            quantized_ND = torch.zeros_like(x_ND)
            for level in range(self.settings.num_quantizers):
                rest_ND = x_ND - quantized_ND if level else x_ND
                codes_NG = nearest_codes(rest_ND, self.codebooks_LIKd[layer, self._of(level)])
                quantized_ND = quantized_ND + self._words(layer, level, codes_NG)
                if self.training:
                    self._follow(layer, level, rest_ND, codes_NG)
            known_ND = quantized_ND
            if self.training:
                self._observe_residual(layer, x_ND - quantized_ND)
                if self.settings.noise:
                    known_ND = quantized_ND + self.settings.noise * self.draw_residual(layer, len(x_ND))
        commitment = (x_BTD - quantized_ND.view_as(x_BTD)).square().sum(-1).mean()
        return self._joined(x_BTD, quantized_ND.view_as(x_BTD), known_ND.view_as(x_BTD)), commitment

    @property
    def pre_rotation(self) -> PreRotation:
        """How tokens are turned."""
        return "none" if self.rotation_LDD is None else "pca"

    def draw_residual(self, layer: int, count: int) -> Tensor:
        """Gaussian noise [count, D] of the running mean and variance of X - X̂, by the global random generator."""
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
        """Codewords in use [L, I], as exp(entropy) of all choices since ``forget_use``; 1 to K, NaN without choices."""
        p_LIK = self.used_LIK / self.used_LIK.sum(-1, keepdim=True)
        return torch.special.entr(p_LIK).sum(-1).exp()

    def forget_use(self) -> None:
        """Begin to count choices anew."""
        self.used_LIK.zero_()

    def _joined(self, x_BTD: Tensor, quantized_BTD: Tensor, known_BTD: Tensor) -> Tensor:
        """``known_BTD`` forward, and the gradient for the tokens as the settings say."""
        if self.settings.gradient == "straight_through":
            joined_BTD = StraightThrough.apply(x_BTD, known_BTD)
        else:
            grouped = (tensor.unflatten(-1, (self.groups, -1)) for tensor in (x_BTD, quantized_BTD, known_BTD))
            joined_BTD = Rotated.apply(*grouped).flatten(-2)
        assert isinstance(joined_BTD, Tensor)
        return joined_BTD

    def _of(self, level: int) -> slice:
        """The codebooks of a level."""
        return slice(level * self.groups, (level + 1) * self.groups)

    def _words(self, layer: int, level: int, codes_NG: Tensor) -> Tensor:
        """The codewords [N, D] of a level's indices."""
        return F.embedding(self._flat(codes_NG), self.codebooks_LIKd[layer, self._of(level)].flatten(0, 1)).flatten(1)

    def _flat(self, codes_NG: Tensor) -> Tensor:
        """Indices into the codewords of all groups of a level."""
        return codes_NG + torch.arange(self.groups, device=codes_NG.device) * self.codebook_size

    def _observe_residual(self, layer: int, residual_ND: Tensor) -> None:
        """Take a batch into the running statistics; the first batches weigh alike, so that none starts from zero."""
        self.batches_L[layer] += 1
        weight = torch.clamp(1 / self.batches_L[layer], min=1 - self.settings.decay)
        self.residual_mean_LD[layer].lerp_(residual_ND.mean(0), weight)
        self.residual_square_LD[layer].lerp_(residual_ND.square().mean(0), weight)

    def _follow(self, layer: int, level: int, x_ND: Tensor, codes_NG: Tensor) -> None:
        """Move a level's codewords towards the means of what chose them, and revive the dead."""
        own = self._of(level)
        books_GKd, counts_GK, sums_GKd = (
            buffer[layer, own] for buffer in (self.codebooks_LIKd, self.counts_LIK, self.sums_LIKd)
        )
        size, width = books_GKd.shape[1:]
        flat_E = self._flat(codes_NG).flatten()
        x_Ed = x_ND.reshape(-1, width)
        used_GK = torch.bincount(flat_E, minlength=self.groups * size).view_as(counts_GK)
        sum_GKd = torch.zeros_like(sums_GKd).view(-1, width).index_add_(0, flat_E, x_Ed).view_as(sums_GKd)
        self.used_LIK[layer, own] += used_GK
        even, new = size / len(x_ND), 1 - self.settings.decay
        counts_GK.lerp_(used_GK * even, new)
        sums_GKd.lerp_(sum_GKd * even, new)
        # A candidate for every codeword and no look at how many are dead: a GPU need not wait for the answer.
        dead_GK = counts_GK < self.settings.dead_below
        chosen_GK = torch.randint(len(x_ND), dead_GK.shape, device=dead_GK.device)
        token_GKd = x_Ed[chosen_GK * self.groups + torch.arange(self.groups, device=dead_GK.device)[:, None]]
        counts_GK.masked_fill_(dead_GK, 1)
        sums_GKd.copy_(torch.where(dead_GK[..., None], token_GKd, sums_GKd))
        total_G1 = counts_GK.sum(-1, keepdim=True)
        smoothed_GK = (counts_GK + LAPLACE) / (total_G1 + size * LAPLACE) * total_G1
        books_GKd.copy_(sums_GKd / smoothed_GK[..., None])
