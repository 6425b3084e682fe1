"""The tokens of a text fit the model, or the tokenizer is named as that of another model."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models

from testbed.errors import ConfigError
from testbed.models.decoders import check_tokens
from tests.datasets.test_token_windows import BYTES
from tests.tiny_llama import LLAMA

WORDS = Tokenizer(models.WordLevel({"a": 3, "?": 0}, unk_token="?"))


def test_ids_beyond_the_embedding_are_refused() -> None:
    check_tokens(torch.tensor([[0, 255]]), BYTES, LLAMA, "x")
    found = r"^model.folder=x: the text has token ids up to 256, the model's vocabulary ends at 255; tokenizer\.json "
    with pytest.raises(ConfigError, match=found):
        check_tokens(torch.tensor([[0, 256]]), BYTES, LLAMA, "x")


def test_a_text_of_unknown_tokens_is_refused() -> None:
    check_tokens(torch.tensor([[3, 0], [3, 0]]), WORDS, LLAMA, "x")
    with pytest.raises(ConfigError, match=r"^model.folder=x: 3 of 4 tokens of the text are \?, the token for what it"):
        check_tokens(torch.tensor([[3, 0], [0, 0]]), WORDS, LLAMA, "x")
