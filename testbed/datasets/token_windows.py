"""Token windows for language modeling: a corpus through a tokenizer, cut into pieces of one length.

Documents are joined by an empty line and cut without regard to where they end, as is usual for perplexity. Shape
suffixes: N windows, S tokens of a window.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from testbed.datasets.corpora import corpus_named, documents
from testbed.errors import ConfigError
from testbed.models.weights import save_tensors

RECIPE = 1  # to be raised with every change that alters the tokens, so that older cache files are not used
BETWEEN = "\n\n"


@dataclass(frozen=True)
class NextTokens:
    """Windows [N, S] as examples to train on: of each, the first S - 1 tokens, and the ones that follow them."""

    windows_NS: Tensor

    def __len__(self) -> int:
        return len(self.windows_NS)

    def batch(self, indices: Tensor, augmented: bool = False) -> tuple[Tensor, Tensor]:
        """(tokens, next tokens), each [B, S - 1]. There is no way to vary a text: ``augmented`` changes nothing."""
        chosen_BS = self.windows_NS[indices]
        return chosen_BS[:, :-1], chosen_BS[:, 1:]


def windows(
    name: str,
    tokenizer: Tokenizer,
    cache_dir: Path,
    length: int = 512,
    count: int | None = None,
    split: str = "held_out",
    folder: Path | None = None,
) -> Tensor:
    """Windows [N, S] of ``length`` tokens that do not overlap, int64; ``count`` of them, or all.

    name: of a corpus (corpora.py); some need a ``folder``. split: ``train`` or ``held_out``. Drawn without a seed, from
    all over the corpus: fewer windows are the first ones of more. The corpus is tokenized once, into ``cache_dir``.

    Raises ConfigError (``data.name``, ``data.split``, ``data.folder``, ``data.length``, ``data.windows``) for what
    cannot be, EnvironmentFault if a package is missing; both say what to do.
    """
    if length < 2:
        raise ConfigError("data.length", length, "must be 2 or more: a token and the one to predict")
    stream = _stream(name, tokenizer, split, folder, cache_dir)
    available = len(stream) // length
    if not available:
        raise ConfigError("data.length", length, f"{split} of {name} has {len(stream)} tokens in all")
    wanted = available if count is None else count
    if not 1 <= wanted <= available:
        raise ConfigError("data.windows", wanted, f"{split} of {name} has {available} windows of {length} tokens")
    order = torch.randperm(available, generator=torch.Generator().manual_seed(0))
    return stream[: available * length].view(available, length)[order[:wanted]].long()


def _stream(name: str, tokenizer: Tokenizer, split: str, folder: Path | None, cache_dir: Path) -> Tensor:
    """All tokens of one split, int32, from the cache if it has them."""
    files = corpus_named(name, split).locate(split, folder, cache_dir)
    source = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    vocabulary = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    recipe = json.dumps({"recipe": RECIPE, "name": name, "split": split, "files": source, "tokenizer": vocabulary})
    path = cache_dir / f"tokens-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.safetensors"
    if path.exists():
        try:
            return load_file(path)["ids"]
        except (SafetensorError, KeyError) as error:
            warnings.warn(f"{path} is damaged ({error}); tokenizing {name} again", stacklevel=3)
    ids: list[int] = []
    for _, text in documents(name, split, files):
        # one at a time: a batch would start threads, which do not survive a fork
        ids += tokenizer.encode(text + BETWEEN, add_special_tokens=False).ids
    save_tensors({"ids": torch.tensor(ids, dtype=torch.int32)}, path, {"recipe": recipe})
    return load_file(path)["ids"]
