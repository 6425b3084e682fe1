"""Causal decoders by the key ``model.name``: SmolLM2 from its package, or a hub folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from testbed.errors import ConfigError
from testbed.models.gpt2 import Gpt2, Gpt2Config
from testbed.models.hub import hub_tokenizer, hub_without_weights, load_hub
from testbed.models.llama import Llama, LlamaConfig
from testbed.models.smollm2 import SMOLLM2, load_smollm2, smollm2_tokenizer

HUB_FOLDER = "hub_folder"
MOST_UNKNOWN = 0.5  # of a text's tokens; a tokenizer that knows less of a text does not fit it


@dataclass(frozen=True)
class DecoderChoice:
    """A decoder that ``load_model`` can build without weights and fill from files."""

    name: str
    config: LlamaConfig | Gpt2Config

    def skeleton(self, tokens: int) -> Llama | Gpt2:
        """The model for prompts of ``tokens`` tokens."""
        model = Llama(self.config) if isinstance(self.config, LlamaConfig) else Gpt2(self.config)
        model.tokens = tokens
        return model


@cache  # called for every result row
def decoder_config(name: str, folder: str) -> LlamaConfig | Gpt2Config:
    """The sizes of a decoder; no weights are read. Raises ConfigError as ``load_decoder`` does."""
    return SMOLLM2 if name != HUB_FOLDER else _checked(hub_without_weights(Path(folder)), folder).config


def load_decoder(name: str, folder: str, cache_dir: Path) -> tuple[Llama | Gpt2, Tokenizer]:
    """(the model in eval mode and without gradients, its tokenizer). cache_dir: folder for dequantized weights.

    Raises ConfigError (key ``model.folder``) for an unusable folder, EnvironmentFault for a missing package.
    """
    if name != HUB_FOLDER:
        return load_smollm2(cache_dir), smollm2_tokenizer(cache_dir)
    return _checked(load_hub(Path(folder)), folder), hub_tokenizer(Path(folder))


def check_tokens(ids: Tensor, tokenizer: Tokenizer, config: LlamaConfig | Gpt2Config, folder: str) -> None:
    """Raise ConfigError (key ``model.folder``) for token ids of a text that cannot be the model's.

    ids: of any shape. The embedding lacks them, or most of them stand for what the tokenizer does not know.
    """
    largest, other = int(ids.max()), "tokenizer.json must be that of the model"
    if largest >= config.vocabulary:
        found = f"the text has token ids up to {largest}, the model's vocabulary ends at {config.vocabulary - 1}"
        raise ConfigError("model.folder", folder, f"{found}; {other}")
    unknown = getattr(tokenizer.model, "unk_token", None)
    index = None if unknown is None else tokenizer.token_to_id(unknown)
    count = 0 if index is None else int((ids == index).sum())
    if count > MOST_UNKNOWN * ids.numel():
        found = f"{count} of {ids.numel()} tokens of the text are {unknown}, the token for what it does not know"
        raise ConfigError("model.folder", folder, f"{found}; {other}, and of the text's language")


def _checked(model: object, folder: str) -> Llama | Gpt2:
    """The same model. Raises ConfigError if it is no causal decoder."""
    if not isinstance(model, Llama | Gpt2):
        raise ConfigError("model.folder", folder, "holds a Vision Transformer; expected GPT-2 or Llama")
    return model
