"""Causal decoders by the name that a configuration gives them: SmolLM2 from its package, and hub folders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer

from testbed.errors import ConfigError
from testbed.models.gpt2 import Gpt2, Gpt2Config
from testbed.models.hub import hub_tokenizer, hub_without_weights, load_hub
from testbed.models.llama import Llama, LlamaConfig
from testbed.models.smollm2 import SMOLLM2, load_smollm2, smollm2_tokenizer

HUB_FOLDER = "hub_folder"


@dataclass(frozen=True)
class DecoderChoice:
    """A decoder as ``load_model`` builds it; weights come from files."""

    name: str
    config: LlamaConfig | Gpt2Config

    def skeleton(self, tokens: int) -> Llama | Gpt2:
        """The model for prompts of ``tokens``."""
        model = Llama(self.config) if isinstance(self.config, LlamaConfig) else Gpt2(self.config)
        model.tokens = tokens
        return model


@cache  # formulas ask for it with every row
def decoder_config(name: str, folder: str) -> LlamaConfig | Gpt2Config:
    """The sizes of a decoder, without its weights. Raises what ``load_decoder`` raises."""
    return SMOLLM2 if name != HUB_FOLDER else _checked(hub_without_weights(Path(folder)), folder).config


def load_decoder(name: str, folder: str, cache_dir: Path) -> tuple[Llama | Gpt2, Tokenizer]:
    """The model, in eval mode and without gradients, and its tokenizer; what is computed of them is in ``cache_dir``.

    Raises ConfigError (``model.folder``) for a folder that cannot be used, EnvironmentFault for a missing package.
    """
    if name != HUB_FOLDER:
        return load_smollm2(cache_dir), smollm2_tokenizer(cache_dir)
    return _checked(load_hub(Path(folder)), folder), hub_tokenizer(Path(folder))


def _checked(model: object, folder: str) -> Llama | Gpt2:
    """ConfigError for another kind of model."""
    if not isinstance(model, Llama | Gpt2):
        raise ConfigError("model.folder", folder, "holds a Vision Transformer; expected GPT-2 or Llama")
    return model
