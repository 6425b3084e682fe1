"""The reference for ASTRA's decoder on real links: its simulation, with the codes that were sent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from testbed.astra.quantized import Quantized
from testbed.astra.quantizer import Quantizer
from testbed.astra.reference_vit import Simulated, count_ties
from testbed.astra.training.decoder import AstraDecoder
from testbed.astra.training.ema_quantizer import VectorQuantizer, VqSettings
from testbed.models.gpt2 import Gpt2
from testbed.models.llama import Llama


class SentCodes(VectorQuantizer):
    """Quantizes a single sequence by given codes where there are any, and counts in how many its own differ.

    Raises ValueError where a given code is no near tie.
    """

    def __init__(self, quantizer: Quantizer, codes_LQI: Tensor | None):
        super().__init__(
            quantizer.codebooks_LIKd, VqSettings(num_quantizers=quantizer.num_quantizers), quantizer.rotation_LDD
        )
        self.quantizer, self.codes_LQI, self.ties = quantizer, codes_LQI, 0

    def forward(self, layer: int, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """As ``VectorQuantizer.forward``."""
        codes_QI = self.quantizer.encode(layer, x_BTD[0])
        if self.codes_LQI is not None:
            self.ties += count_ties(self.quantizer, layer, x_BTD[0], codes_QI, self.codes_LQI[layer])
            codes_QI = self.codes_LQI[layer]
        return self.quantizer.decode(layer, codes_QI)[None], x_BTD.new_zeros(())


@torch.no_grad()
def simulate_decoder(
    model: Llama | Gpt2,
    quantizer: Quantizer,
    ids_BT: Tensor,
    shares: Sequence[int],
    codes_LQI: Tensor | None,
    quantized: Quantized,
    anchor_tokens: int,
) -> Simulated:
    """One pass of ``len(shares)`` devices over a prompt [1, T]: hidden [T, D], logits [V] for the token after it.

    codes_LQI: indices that a distributed run sent; see ``simulate``, also for what is raised.
    """
    sent = SentCodes(quantizer, codes_LQI)
    student = AstraDecoder(model, ids_BT.shape[1], sent, quantized, anchor_tokens).eval()
    done = student(ids_BT, shares, keep_states=True)
    return Simulated(model.norm(done.states[-1])[0], done.logits[0, -1], sent.ties)
