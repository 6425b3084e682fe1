"""Token windows for language modeling: a tokenized corpus, split into windows of equal length.

Documents are joined by an empty line. Windows may cross the borders of documents, as is usual for perplexity.

Shape suffixes: N windows, B batch, S tokens of a window.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from testbed.datasets.corpora import corpus_named, documents
from testbed.datasets.folders import content_hash
from testbed.errors import ConfigError
from testbed.models.tensor_cache import cached_tensor
from testbed.progress import counted

RECIPE = 2  # raise it with every change of the tokens, so that older cache files are not used
BETWEEN = "\n\n"


@dataclass(frozen=True)
class NextTokens:
    """Windows [N, S] as training examples: the first S - 1 tokens of each, and the tokens that follow them."""

    windows_NS: Tensor

    def __len__(self) -> int:
        return len(self.windows_NS)

    def batch(self, indices: Tensor, augmented: bool = False) -> tuple[Tensor, Tensor]:
        """(tokens, next tokens), each [B, S - 1]. augmented: has no effect, because texts are not augmented."""
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
    """Windows [N, S] of ``length`` tokens that do not overlap, int64. count: how many; None for all.

    name: of a corpus (corpora.py); some need a ``folder``. split: ``train`` or ``held_out``. Windows are in a fixed
    random order, so fewer windows are the first ones of more. The corpus is tokenized once and cached in ``cache_dir``
    under a hash of its files' contents.

    Raises ConfigError (``data.name``, ``data.split``, ``data.folder``, ``data.length``, ``data.windows``) for values
    that the corpus does not allow, EnvironmentFault if a package is missing. Both say what to do.
    """
    if length < 2:
        raise ConfigError("data.length", length, "must be 2 or more: a token and the next one")
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
    """All tokens of one split, int32, from the cache if they are there, under a hash of what the files hold."""
    files = corpus_named(name, split).locate(split, folder, cache_dir)
    source = [(file.name, content_hash(file).hex()) for file in files]
    vocabulary = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    recipe = json.dumps({"recipe": RECIPE, "name": name, "split": split, "files": source, "tokenizer": vocabulary})
    path = cache_dir / f"tokens-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.safetensors"
    return cached_tensor(path, "ids", lambda: _tokenized(name, split, files, tokenizer), {"recipe": recipe})


def _tokenized(name: str, split: str, files: Sequence[Path], tokenizer: Tokenizer) -> Tensor:
    """The tokens of one split, int32."""
    found, parts = documents(name, split, files), []
    with counted(f"tokenizing {len(found)} documents of {name}") as report:
        for number, (_, text) in enumerate(found, 1):
            # One document at a time: a batch would start threads, which do not survive a fork.
            ids = tokenizer.encode(text + BETWEEN, add_special_tokens=False).ids
            parts.append(torch.tensor(ids, dtype=torch.int32))
            report(number, len(found))
    return torch.cat(parts)
