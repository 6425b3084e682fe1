"""What compressed communication costs language models: perplexity of held-out text, in and out of the domain.

Codebooks and adaptation see the training part of one corpus (*data*, in rows); the model is judged on windows of
several (*corpus*), each device having an even share of a window. Changes are of the same windows, in percent.

Anchors cost no bits: they see no token but each other, so every device computes them itself
(testbed.astra.training.decoder).

How much text k-means sees is a compromise of time and quality: its cost is samples x K x W a layer and iteration,
whatever G is. By default 32 windows, 16 samples a codeword at K = 1024; SmolLM2 then takes 1 to 4 minutes a codebook on
one core, 30 layers. Fewer windows hurt first where a window's first token, which draws much attention, gets no codeword
of its own: keys and values, G = 32, K = 256, 16 windows cost 12.8% perplexity (3 Wikipedia windows), 1.3% with a single
anchor.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from experiments.accuracy_common import (
    KMEANS,
    TRAINED,
    UNCOMPRESSED,
    AccuracyBench,
    Measured,
    Subject,
    Variant,
    adapted,
    measure_all,
)
from experiments.accuracy_common import variants as all_variants
from experiments.measurement.vit_inputs import CACHE
from testbed.astra.codebooks import fingerprint, load_codebooks
from testbed.astra.decoder_codebooks import decoder_codebooks_for
from testbed.astra.int8_tokens import int8_bits
from testbed.astra.quantizer import Codebooks, check_quantizer
from testbed.astra.training.decoder import AstraDecoder, Quantized, bits_per_token, quantized_width
from testbed.astra.training.ema_quantizer import VectorQuantizer
from testbed.comm.group import even_shares
from testbed.config.schema import AccuracyLmConfig, Texts
from testbed.datasets.perplexity import perplexity, window_nll
from testbed.datasets.token_windows import NextTokens, windows
from testbed.errors import ConfigError
from testbed.models.decoders import load_decoder
from testbed.models.gpt2 import Gpt2
from testbed.models.llama import Llama
from testbed.models.weights import save_tensors
from testbed.progress import counted
from testbed.results.bootstrap import bootstrap_interval
from testbed.results.provenance import short_hash
from testbed.results.run_folder import RunFolder

RECIPE = 1  # to be raised with every change that alters what is cached, so that older files are not used
VALIDATION_WINDOWS = 16  # of the training part, left out of training
FOLDER_OF = {"english": "brown", "wikitext103": "wikitext-103", "text_folder": "text"}  # whose files data.folder has


@dataclass(frozen=True)
class LmVariant(Variant):
    """With what of the model is quantized, and how many first tokens stay exact for everybody."""

    quantized: str
    anchor_tokens: int


def run(config: AccuracyLmConfig, backend: str, folder: RunFolder) -> int:
    """Adapt and judge what is not completed yet, row by row. Returns the number of variants that failed."""
    return measure_all(_Bench(config, folder), all_variants(LmVariant, config), config)


class _Bench(AccuracyBench[LmVariant]):
    """The plain model, its likelihoods of every window, and everything a variant is compared with."""

    def __init__(self, config: AccuracyLmConfig, folder: RunFolder):
        self.config, self.data = config, config.data
        self.model, self.tokenizer = load_decoder(config.model.name, config.model.folder, CACHE)
        self.shape = self.model.config.shape(config.data.length)
        subject = Subject(config.model.label, config.data.train, "perplexity", config.data.length, self.shape.hidden)
        super().__init__(config, folder, subject, config.data.corpora)
        _check(config, self.model)
        self.recipe = {"recipe": RECIPE, "model": asdict(self.model.config), "weights": fingerprint(self.model)}
        self._original_nll: dict[str, Tensor] = {}
        # all texts now: whatever of them is missing ends the run before hours of work, not after
        self.judged = {
            corpus: self._windows(corpus, "held_out", "windows", config.data.windows) for corpus in self.corpora
        }
        self.codebook_NS = self._windows(self.data.train, "train", "codebook_windows", self.data.codebook_windows)
        if TRAINED in self.stages:
            count = self.data.train_windows + VALIDATION_WINDOWS
            self.examples_NS = self._windows(self.data.train, "train", "train_windows", count, self.data.length + 1)

    def bits(self, variant: LmVariant, devices: int) -> float:
        quantized, indices = cast(Quantized, variant.quantized), variant.num_quantizers * variant.groups
        codes = bits_per_token(self.shape, quantized, indices, variant.codebook_size, variant.anchor_tokens, 0)
        width, shares = quantized_width(self.shape, quantized), even_shares(self.data.length, devices)
        return codes + int8_bits(variant.int8_tokens, width, shares)

    def measure(self, variant: LmVariant) -> None:
        for corpus in self.corpora:
            self._original(corpus)
        books = self._codebooks(variant)
        if KMEANS in self.stages:
            self._judge(KMEANS, variant, self._student(self.model, books, variant), {})
        if TRAINED in self.stages:
            student = self._student(copy.deepcopy(self.model), books, variant)
            self._judge(TRAINED, variant, student, self._adapt(student, variant))

    def _student(self, model: Llama | Gpt2, books: Codebooks, variant: LmVariant) -> AstraDecoder:
        quantizer = VectorQuantizer(books.codebooks_LIKd, variant.vq, books.rotation_LDD)
        of = (quantizer, cast(Quantized, variant.quantized), variant.anchor_tokens)
        return AstraDecoder(model, self.data.length, *of, variant.int8_tokens).eval()

    def _codebooks(self, variant: LmVariant) -> Codebooks:
        """Codebooks of the variant, from the cache if it has them.

        One G at a time: that repeats the model's own pass, which is short beside k-means, and a run that is ended
        loses the less.
        """
        groups, size, quantized = variant.groups, variant.codebook_size, cast(Quantized, variant.quantized)
        title = f"  k-means on {len(self.codebook_NS)} windows of {self.data.train}, or the cache"
        with counted(title) as report:
            of = (quantized, [groups], size, variant.seed, CACHE, variant.anchor_tokens, report, variant.num_quantizers)
            of += (variant.pre_rotation,)
            return load_codebooks(decoder_codebooks_for(self.model, self.codebook_NS, *of)[groups])

    def _adapt(self, student: AstraDecoder, variant: LmVariant) -> dict[str, Any]:
        """Fine-tune in place; returns what it cost."""
        settings = variant.settings(self.config.training)
        recipe = self.recipe | {"variant": asdict(variant), "training": asdict(settings)}
        recipe |= {"codebook_windows": _digest(self.codebook_NS), "train_windows": _digest(self.examples_NS)}
        count = self.data.train_windows
        examples, validation = NextTokens(self.examples_NS[:count]), NextTokens(self.examples_NS[count:])
        teacher = AstraDecoder(self.model, self.data.length) if settings.objective.needs_teacher else None
        return adapted(student, examples, validation, settings, recipe, teacher)

    def _judge(self, stage: str, variant: LmVariant, student: AstraDecoder, cost: dict[str, Any]) -> None:
        """Rows of a model on each number of devices and each corpus."""
        for row in self.missing(variant).values():
            if row["stage"] != stage:
                continue
            corpus, shares = row["corpus"], even_shares(self.data.length, row["devices"])
            with counted(f"  {corpus}: {self.data.windows} windows") as report:
                nll_N = window_nll(lambda ids, to=shares: student(ids, to).logits, self.judged[corpus], report)
            self.write(row, _measured(nll_N, self._original(corpus)), cost)

    def _original(self, corpus: str) -> Tensor:
        """What the uncompressed model makes of each window, [windows]; kept in the cache, as every run needs it."""
        if corpus not in self._original_nll:
            recipe = self.recipe | {"windows": _digest(self.judged[corpus])}
            nll_N = _cached(CACHE / f"nll-{short_hash(recipe)}.safetensors")
            if nll_N is None:
                with counted(f"original, {corpus}: {self.data.windows} windows") as report:
                    nll_N = window_nll(self.model, self.judged[corpus], report)
                save_tensors({"nll": nll_N}, CACHE / f"nll-{short_hash(recipe)}.safetensors")
            self._original_nll[corpus] = nll_N
            self.write(self.row(UNCOMPRESSED, None, 1, corpus), _measured(nll_N, nll_N), {})
        return self._original_nll[corpus]

    def _windows(self, corpus: str, split: str, key: str, count: int, length: int = 0) -> Tensor:
        """Windows of a corpus that the model can read. ConfigError names ``data.KEY`` if there are not enough."""
        folder = Path(self.data.folder) if self.data.folder and FOLDER_OF[self.data.name] == corpus else None
        try:
            found = windows(corpus, self.tokenizer, CACHE, length or self.data.length, count, split, folder)
        except ConfigError as error:
            if error.key != "data.windows":
                raise
            raise ConfigError(f"data.{key}", getattr(self.data, key), error.allowed) from None
        if found.max() >= self.model.config.vocabulary:
            need = f"its tokenizer gives ids up to {found.max()}, the model knows {self.model.config.vocabulary}"
            raise ConfigError("model.folder", self.config.model.folder, need)
        return found


def _check(config: AccuracyLmConfig, model: Llama | Gpt2) -> None:
    """ConfigError where settings do not fit the model or each other."""
    data: Texts = config.data
    if isinstance(model, Gpt2) and data.length > model.config.positions:
        raise ConfigError(
            "data.length", data.length, f"must be at most {model.config.positions}, the model's positions"
        )
    for quantized, groups, size in itertools.product(config.quantized, config.groups, config.codebook_sizes):
        check_quantizer(quantized_width(model.config.shape(1), cast(Quantized, quantized)), groups, size)
    if max(config.anchor_tokens) >= data.length:
        raise ConfigError("anchor_tokens", max(config.anchor_tokens), f"must be less than data.length={data.length}")
    each, need = data.length - max(config.anchor_tokens), max(config.codebook_sizes)
    if data.codebook_windows * each < need:
        allowed = f"must be {math.ceil(need / each)} or more: {need} codewords need as many tokens"
        raise ConfigError("data.codebook_windows", data.codebook_windows, allowed)
    if TRAINED in config.stages:
        for variant in all_variants(LmVariant, config):
            variant.settings(config.training).check(data.length, data.train_windows)


def _measured(nll_N: Tensor, original_N: Tensor) -> Measured:
    """Perplexity, and its change against the original in percent. Intervals are of the mean log, so of ratios."""
    low, high = map(math.exp, bootstrap_interval(nll_N.numpy()))
    rise_N = nll_N - original_N
    change_low, change_high = (_percent(bound) for bound in bootstrap_interval(rise_N.numpy()))
    return Measured(
        examples=len(nll_N),
        value=perplexity(nll_N),
        value_low=low,
        value_high=high,
        change=_percent(rise_N.mean().item()),
        change_low=change_low,
        change_high=change_high,
        unit=" perplexity",
        change_unit="%",
    )


def _percent(log_ratio: float) -> float:
    return 100 * math.expm1(log_ratio)


def _digest(windows_NS: Tensor) -> str:
    return hashlib.sha256(windows_NS.numpy().tobytes()).hexdigest()


def _cached(path: Path) -> Tensor | None:
    """The likelihoods of a file; None if there is none, or a damaged one, of which it warns."""
    if not path.exists():
        return None
    try:
        return load_file(path)["nll"]
    except (SafetensorError, KeyError) as error:
        warnings.warn(f"{path} is damaged ({error}); computing it again", stacklevel=3)
        return None
