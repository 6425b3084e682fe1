"""The reference for a distributed decoder under ASTRA: its one-process simulation with the codes that were sent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.quantizer import Quantizer
from testbed.astra.reference_vit import Simulated, count_ties
from testbed.astra.training.decoder import AstraDecoder
from testbed.astra.training.ema_quantizer import VectorQuantizer, VqSettings
from testbed.models.gpt2 import Gpt2
from testbed.models.llama import Llama


class SentCodes(VectorQuantizer):
    """Quantizes one sequence with given codes and counts how many of them differ from its own choice.

    codes_LQI: None to use its own codes. Raises ValueError for a given code whose codeword is not about as near.
    """

    def __init__(self, quantizer: Quantizer, codes_LQI: Tensor | None):
        super().__init__(
            quantizer.codebooks_LIKd, VqSettings(num_quantizers=quantizer.num_quantizers), quantizer.rotation_LDD
        )
        self.quantizer, self.codes_LQI, self.ties = quantizer, codes_LQI, 0

    def forward(self, layer: int, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """As ``VectorQuantizer.forward``."""
        codes_QI = self.quantizer.encode(layer, x_BTD[0].float())
        if self.codes_LQI is not None:
            self.ties += count_ties(self.quantizer, layer, x_BTD[0], codes_QI, self.codes_LQI[layer])
            codes_QI = self.codes_LQI[layer]
        return self.quantizer.decode(layer, codes_QI, x_BTD.dtype)[None], x_BTD.new_zeros(())


@torch.no_grad()
def simulate_decoder(
    model: Llama | Gpt2,
    quantizer: Quantizer,
    spec: CodebookSpec,
    ids_BT: Tensor,
    shares: Sequence[int],
    codes_LQI: Tensor | None,
) -> Simulated:
    """The prefill of a prompt [1, T] on ``len(shares)`` devices: hidden [T, D], logits [V] of the next token.

    spec: of the quantizer's codebooks. codes_LQI: indices that a distributed run sent; see ``simulate``, also for
    errors.
    """
    sent = SentCodes(quantizer, codes_LQI)
    student = AstraDecoder(model, ids_BT.shape[1], sent, spec.quantized, spec.anchor_tokens).eval()
    done = student(ids_BT, shares, keep_states=True)
    return Simulated(model.norm(done.states[-1])[0], done.logits[0, -1], sent.ties)
