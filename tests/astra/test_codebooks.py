import importlib.util
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from testbed.astra import codebooks
from testbed.astra.codebooks import codebooks_for, load_codebooks, train_codebooks
from testbed.astra.quantizer import Codebooks, Quantizer
from testbed.errors import ConfigError, EnvironmentFault
from testbed.models.weights import ModelChoice, build_model

TINY = ModelChoice("tiny", layers=3, hidden=24, heads=3, patch=4, classes=5, pretrained=False)
TOKENS = 36

pytestmark = pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is missing")


@pytest.fixture(scope="module")
def model():
    return build_model(TINY, TOKENS, seed=0)


@pytest.fixture(scope="module")
def pictures():
    return codebooks.photographs(TOKENS, TINY.patch, count=8, seed=0)


def relative_errors(model, books, pictures, num_quantizers=1):
    """Squared quantization error over variance, per layer."""
    quantizer, x_BSD, errors = (
        Quantizer(books.codebooks_LIKd, num_quantizers, books.rotation_LDD),
        model.embed(pictures),
        [],
    )
    for layer, block in enumerate(model.blocks):
        content = x_BSD[:, 1:].flatten(0, 1)
        rest = content - quantizer.decode(layer, quantizer.encode(layer, content))
        errors.append((rest.square().mean() / (content - content.mean(0)).square().mean()).item())
        x_BSD = block(x_BSD)
    return errors


def shapes_of(books):
    return {groups: tuple(book.codebooks_LIKd.shape) for groups, book in books.items()}


def test_codebooks_fit_the_stream_at_each_layer_s_input(model, pictures):
    books = train_codebooks(model, pictures, [1, 8], 32, seed=0)
    assert shapes_of(books) == {
        1: (3, 1, 32, 24),
        8: (3, 8, 32, 3),
    }
    whole, grouped = relative_errors(model, books[1], pictures), relative_errors(model, books[8], pictures)
    assert max(whole) < 0.6
    assert all(g < w / 2 for g, w in zip(grouped, whole, strict=True))
    shifted = relative_errors(model, Codebooks(books[1].codebooks_LIKd.roll(1, 0)), pictures)
    assert all(wrong > right for wrong, right in zip(shifted, whole, strict=True))


def test_a_second_level_fits_what_the_first_left_over(model, pictures):
    books = train_codebooks(model, pictures, [1, 8], 32, seed=0, num_quantizers=2)
    assert shapes_of(books) == {
        1: (3, 2, 32, 24),
        8: (3, 16, 32, 3),
    }
    for groups, book in books.items():
        one = train_codebooks(model, pictures, [groups], 32, seed=0)[groups]
        assert torch.equal(book.codebooks_LIKd[:, :groups], one.codebooks_LIKd)
        pairs = zip(relative_errors(model, book, pictures, 2), relative_errors(model, one, pictures), strict=True)
        assert all(two < 0.8 * first for two, first in pairs)


def test_turned_to_their_components_tokens_lose_less(model, pictures):
    plain, turned = (
        train_codebooks(model, pictures, [1, 8], 32, seed=0, pre_rotation=pre_rotation)
        for pre_rotation in ("none", "pca")
    )
    for groups, book in turned.items():
        assert book.rotation_LDD is not None and book.rotation_LDD.shape == (3, 24, 24)
        before = relative_errors(model, plain[groups], pictures)
        # one group is the same cluster problem, turned
        most = 1.1 if groups == 1 else 0.8
        assert all(own < most * b for own, b in zip(relative_errors(model, book, pictures), before, strict=True))


def test_the_class_token_and_batching_leave_no_trace(model, pictures, monkeypatch):
    expected = train_codebooks(model, pictures, [2], 16, seed=0)[2].codebooks_LIKd
    monkeypatch.setattr(codebooks, "TOKENS_AT_ONCE", 1)
    one_by_one = train_codebooks(model, pictures, [2], 16, seed=0)[2].codebooks_LIKd
    torch.testing.assert_close(one_by_one[0], expected[0])  # later layers may round to other clusters
    other_class_token = build_model(TINY, TOKENS, seed=0)
    other_class_token.class_token.data += 1
    other = train_codebooks(other_class_token, pictures, [2], 16, seed=0)[2].codebooks_LIKd
    torch.testing.assert_close(other[0], expected[0])


def test_one_pass_for_several_groups_equals_one_pass_each(model, pictures):
    both = train_codebooks(model, pictures, [2, 4], 16, seed=3)
    alone = train_codebooks(model, pictures, [4], 16, seed=3)[4]
    assert torch.equal(both[4].codebooks_LIKd, alone.codebooks_LIKd)


def test_progress_counts_layers_and_groups(model, pictures):
    seen = []
    train_codebooks(model, pictures, [1, 2], 8, seed=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]


def test_too_few_pictures_are_counted_out(model, pictures):
    with pytest.raises(ValueError, match="8 pictures of 36 tokens cannot give 512 codewords; expected 15 pictures"):
        train_codebooks(model, pictures, [1], 512, seed=0)


def test_as_many_codewords_as_samples_and_equal_samples(model, pictures):
    blank = torch.zeros_like(pictures)
    books = train_codebooks(model, blank[:1], [1, 3], 32, seed=0)
    assert all(book.codebooks_LIKd.isfinite().all() for book in books.values())


def test_groups_are_checked_first(model, tmp_path: Path):
    with pytest.raises(ConfigError, match="astra.groups=5"):
        codebooks_for(TINY, model, TOKENS, [1, 5], 16, 0, tmp_path)


def test_cache_is_used_and_only_what_is_missing_is_trained(model, tmp_path: Path, monkeypatch):
    asked = []
    train = codebooks.train_codebooks

    def counting(model, pictures, groups, *rest):
        asked.append((list(groups), len(pictures)))
        return train(model, pictures, groups, *rest)

    monkeypatch.setattr(codebooks, "train_codebooks", counting)
    first = codebooks_for(TINY, model, TOKENS, [1, 2], 16, 0, tmp_path / "new")
    assert codebooks_for(TINY, model, TOKENS, [2, 1], 16, 0, tmp_path / "new") == {2: first[2], 1: first[1]}
    both = codebooks_for(TINY, model, TOKENS, [1, 3], 16, 0, tmp_path / "new")
    assert asked == [([1, 2], 4), ([3], 4)]
    assert sorted((tmp_path / "new").iterdir()) == sorted({*first.values(), *both.values()})
    assert load_codebooks(first[2]).codebooks_LIKd.shape == (3, 2, 16, 12)


def test_pictures_grow_with_the_codebook(model, tmp_path: Path, monkeypatch):
    counts = []
    draw = codebooks.photographs
    monkeypatch.setattr(codebooks, "photographs", lambda t, p, count, s: counts.append(count) or draw(t, p, count, s))
    codebooks_for(TINY, model, TOKENS, [1], 128, 0, tmp_path)
    assert counts == [15]  # 4 * 128 samples, 36 to a picture


def test_anything_that_matters_changes_the_file(model, tmp_path: Path):
    fine_tuned = build_model(TINY, TOKENS, seed=0)
    fine_tuned.blocks[1].mlp.fc1.weight.data += 0.01
    arguments = [(model, 16, 0), (model, 32, 0), (model, 16, 1), (fine_tuned, 16, 0)]
    paths = {codebooks_for(TINY, m, TOKENS, [1], size, seed, tmp_path)[1] for m, size, seed in arguments}
    assert len(paths) == 4


def tensors(**named):
    return save(named)


DAMAGES = [
    lambda b: b[: len(b) // 2],
    lambda b: b"",
    lambda b: b"\xff" * len(b),
    lambda b: pickle.dumps({"codebooks": [1.0]}),
    lambda b: tensors(weights=torch.zeros(3, 1, 16, 24)),
    lambda b: tensors(codebooks=torch.zeros(3, 1, 16)),
    lambda b: tensors(codebooks=torch.zeros(3, 1, 16, 24, dtype=torch.int32)),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_are_no_codebooks_are_named(tmp_path: Path, damage):
    path = tmp_path / "c.safetensors"
    path.write_bytes(damage(tensors(codebooks=torch.zeros(3, 1, 16, 24))))
    with pytest.raises(EnvironmentFault, match=r"c\.safetensors is damaged or no file of codebooks \(") as error:
        load_codebooks(path)
    assert str(error.value).isprintable()
    with pytest.raises(EnvironmentFault, match=r"nowhere is damaged or no file of codebooks \(No such file"):
        load_codebooks(tmp_path / "nowhere")
    with pytest.raises(EnvironmentFault, match="is damaged or no file of codebooks"):
        load_codebooks(tmp_path)


@given(st.binary() | st.binary(max_size=60).map(lambda header: len(header).to_bytes(8, "little") + header))
def test_any_bytes_are_no_codebooks(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "c.safetensors"
    path.write_bytes(data)
    with pytest.raises(EnvironmentFault, match=r"c\.safetensors is damaged or no file of codebooks"):
        load_codebooks(path)


@pytest.mark.parametrize("damage", [DAMAGES[0], lambda b: tensors(codebooks=torch.zeros(3, 1, 8, 24))])
def test_damaged_files_are_replaced_with_a_warning(model, tmp_path: Path, damage):
    path = codebooks_for(TINY, model, TOKENS, [1], 16, 0, tmp_path)[1]
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match="is damaged .* training its codebooks again"):
        codebooks_for(TINY, model, TOKENS, [1], 16, 0, tmp_path)
    assert path.read_bytes() == whole
