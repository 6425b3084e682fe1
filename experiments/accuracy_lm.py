"""What compressed communication costs language models: perplexity of held-out text, in and out of the domain.

Codebooks and fine-tuning see the training part of one corpus (column *data*). The model is evaluated on windows of
several corpora (column *corpus*); each device has an even share of a window. Changes are of the same windows, in
percent.

Anchor tokens cost no bits: they see only each other, so every device computes them itself
(testbed.astra.training.decoder).

The amount of text for k-means trades time for quality. Its cost is samples x K x W per layer and iteration, for every
G. The default is 32 windows, 16 samples per codeword at K = 1024; SmolLM2, 30 layers, then takes 1 to 4 minutes per
codebook on one core. With fewer windows, the first loss is that a window's first token, which attracts much attention,
gets no codeword of its own: keys and values, G = 32, K = 256 and 16 windows cost 12.8% perplexity (3 Wikipedia
windows), but 1.3% with one anchor token.
"""

from __future__ import annotations

import copy
import hashlib
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from experiments.accuracy_common import (
    KMEANS,
    TRAINED,
    UNCOMPRESSED,
    AccuracyBench,
    Measured,
    Subject,
    Variant,
    check_codebooks,
    fine_tune,
    measure_all,
)
from experiments.accuracy_common import variants as all_variants
from experiments.measurement.model_inputs import CACHE
from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.codebooks import fingerprint, load_codebooks
from testbed.astra.decoder_codebooks import decoder_codebooks_for
from testbed.astra.quantized import Quantized
from testbed.astra.quantizer import Codebooks
from testbed.astra.training.decoder import AstraDecoder
from testbed.astra.training.ema_quantizer import VectorQuantizer
from testbed.comm.group import even_shares
from testbed.config.schema import AccuracyLmConfig, Texts
from testbed.datasets.corpora import FOLDER_OF
from testbed.datasets.perplexity import perplexity, window_nll
from testbed.datasets.token_windows import NextTokens, windows
from testbed.errors import ConfigError, TestbedError
from testbed.models.decoders import check_tokens, load_decoder
from testbed.models.gpt2 import Gpt2
from testbed.models.llama import Llama
from testbed.models.tensor_cache import cached_tensor
from testbed.progress import counted
from testbed.results.intervals import mean_interval
from testbed.results.provenance import short_hash
from testbed.results.run_folder import RunFolder

RECIPE = 1  # to be raised with every change that alters what is cached, so that older files are not used
VALIDATION_WINDOWS = 16  # of the training part, not used for training


@dataclass(frozen=True)
class LmVariant(Variant):
    """A variant with the tensor that is quantized and the number of anchor tokens."""

    quantized: str
    anchor_tokens: int

    @property
    def codebook_spec(self) -> CodebookSpec:
        quantized = cast(Quantized, self.quantized)
        return replace(super().codebook_spec, quantized=quantized, anchor_tokens=self.anchor_tokens)


def run(config: AccuracyLmConfig, backend: str, folder: RunFolder) -> int:
    """Fine-tune and evaluate what is not completed, row by row. Returns the number of variants that failed."""
    return measure_all(_Bench(config, folder), all_variants(LmVariant, config), config)


class _Bench(AccuracyBench[LmVariant]):
    """The plain model, its likelihoods of every window, and the texts."""

    def __init__(self, config: AccuracyLmConfig, folder: RunFolder):
        self.config, self.data = config, config.data
        self.model, self.tokenizer = load_decoder(config.model.name, config.model.folder, CACHE)
        shape = self.model.config.shape(config.data.length)
        subject = Subject(config.model.label, config.data.train, "perplexity", shape)
        super().__init__(config, folder, subject, config.data.corpora)
        _check(config, self.model)
        self.recipe = {"recipe": RECIPE, "model": asdict(self.model.config), "weights": fingerprint(self.model)}
        self.uncompressed_nll: dict[str, Tensor] = {}  # of each corpus: of each window, [windows]
        # all texts are loaded now, so that a missing one ends the run before hours of work
        self.held_out = {
            corpus: self._windows(corpus, "held_out", "windows", config.data.windows) for corpus in self.corpora
        }
        self.codebook_NS = self._windows(self.data.train, "train", "codebook_windows", self.data.codebook_windows)
        if TRAINED in self.stages:
            count = self.data.train_windows + VALIDATION_WINDOWS
            self.examples_NS = self._windows(self.data.train, "train", "train_windows", count, self.data.length + 1)

    def inputs(self) -> str:
        texts = [*self.held_out.values(), self.codebook_NS]
        texts += [self.examples_NS] if TRAINED in self.stages else []
        return short_hash([self.recipe["weights"], *map(_digest, texts)])

    def prepare(self) -> None:
        for corpus in self.corpora:
            self.uncompressed_nll[corpus] = nll_N = self._uncompressed(corpus)
            both = nll_N, nll_N
            self.write(self.row(UNCOMPRESSED, None, 1, corpus), lambda both=both: _measured(*both), {})

    def measure(self, variant: LmVariant) -> None:
        codebooks = self._codebooks(variant)
        if KMEANS in self.stages:
            self._evaluate(KMEANS, variant, self._student(self.model, codebooks, variant), {})
        if TRAINED in self.stages:
            student = self._student(copy.deepcopy(self.model), codebooks, variant)
            self._evaluate(TRAINED, variant, student, self._fine_tune(student, variant))

    def _student(self, model: Llama | Gpt2, codebooks: Codebooks, variant: LmVariant) -> AstraDecoder:
        spec, length = variant.codebook_spec, self.data.length
        quantizer = VectorQuantizer(codebooks.codebooks_LIKd, variant.vq, codebooks.rotation_LDD)
        return AstraDecoder(model, length, quantizer, spec.quantized, spec.anchor_tokens, variant.int8_tokens).eval()

    def _codebooks(self, variant: LmVariant) -> Codebooks:
        """The variant's codebooks, from the cache if it has them.

        One spec at a time. This repeats the pass over the model, which is short compared with k-means, and an
        interrupted run loses less.
        """
        spec, title = variant.codebook_spec, f"k-means on {len(self.codebook_NS)} windows of {self.data.train}"
        with counted(f"  {title}, or the cache") as report:
            files = decoder_codebooks_for(self.model, self.codebook_NS, [spec], variant.seed, CACHE, report)
        return load_codebooks(files[spec])

    def _fine_tune(self, student: AstraDecoder, variant: LmVariant) -> dict[str, Any]:
        """Fine-tune in place; returns the cost."""
        settings = variant.settings(self.config.training)
        recipe = self.recipe | {"variant": asdict(variant), "training": asdict(settings)}
        recipe |= {"codebook_windows": _digest(self.codebook_NS), "train_windows": _digest(self.examples_NS)}
        count = self.data.train_windows
        examples, validation = NextTokens(self.examples_NS[:count]), NextTokens(self.examples_NS[count:])
        teacher = AstraDecoder(self.model, self.data.length) if settings.objective.needs_teacher else None
        return fine_tune(student, examples, validation, settings, recipe, teacher)

    def _evaluate(self, stage: str, variant: LmVariant, student: AstraDecoder, cost: dict[str, Any]) -> None:
        """Write the rows of one model, for each number of devices and each corpus."""
        for row in self.missing(variant).values():
            if row["stage"] != stage:
                continue

            def measure(corpus: str = row["corpus"], devices: int = row["devices"]) -> Measured:
                shares = even_shares(self.data.length, devices)
                with counted(f"  {corpus}: {self.data.windows} windows") as report:
                    nll_N = window_nll(lambda ids: student(ids, shares).logits, self.held_out[corpus], report)
                return _measured(nll_N, self.uncompressed_nll[corpus])

            self.write(row, measure, cost)

    def _uncompressed(self, corpus: str) -> Tensor:
        """The baseline's negative log-likelihood of each window, [windows], from the cache if it has it."""

        def evaluated() -> Tensor:
            with counted(f"uncompressed, {corpus}: {self.data.windows} windows") as report:
                try:
                    return window_nll(self.model, self.held_out[corpus], report)
                except TestbedError as fault:
                    raise TestbedError(f"the uncompressed baseline on {corpus}: {fault}") from fault

        recipe = self.recipe | {"windows": _digest(self.held_out[corpus])}
        return cached_tensor(CACHE / f"nll-{short_hash(recipe)}.safetensors", "nll", evaluated)

    def _windows(self, corpus: str, split: str, key: str, count: int, length: int = 0) -> Tensor:
        """Windows of a corpus, of ids in the model's vocabulary. ConfigError (``data.<key>``) if there are too few."""
        folder = Path(self.data.folder) if self.data.folder and FOLDER_OF[self.data.name] == corpus else None
        try:
            found = windows(corpus, self.tokenizer, CACHE, length or self.data.length, count, split, folder)
        except ConfigError as error:
            if error.key != "data.windows":
                raise
            more = f"; {VALIDATION_WINDOWS} more are needed for validation" if key == "train_windows" else ""
            raise ConfigError(f"data.{key}", getattr(self.data, key), f"{error.allowed}{more}") from None
        check_tokens(found, self.tokenizer, self.model.config, self.config.model.folder)
        return found


def _check(config: AccuracyLmConfig, model: Llama | Gpt2) -> None:
    """Raise ConfigError where settings do not fit the model or each other."""
    data: Texts = config.data
    if isinstance(model, Gpt2) and data.length > model.config.positions:
        raise ConfigError(
            "data.length", data.length, f"must be at most {model.config.positions}, the model's positions"
        )
    for variant in all_variants(LmVariant, config):
        check_codebooks(variant, model.config.shape(data.length))
    if max(config.anchor_tokens) >= data.length:
        raise ConfigError("anchor_tokens", max(config.anchor_tokens), f"must be less than data.length={data.length}")
    each, need = data.length - max(config.anchor_tokens), max(config.codebook_sizes)
    if data.codebook_windows * each < need:
        allowed = f"must be {math.ceil(need / each)} or more: {need} codewords need as many tokens"
        raise ConfigError("data.codebook_windows", data.codebook_windows, allowed)
    if TRAINED in config.stages:
        for variant in all_variants(LmVariant, config):
            variant.settings(config.training).check(data.length, data.train_windows)


def _measured(nll_N: Tensor, uncompressed_N: Tensor) -> Measured:
    """Perplexity, and its change against the uncompressed baseline in percent; infinite where float64 ends.

    Intervals are those of the mean log-likelihood, and so of ratios of perplexities.
    """
    rise_N = nll_N - uncompressed_N
    low, high = torch.tensor(mean_interval(nll_N.numpy()), dtype=torch.float64).exp().tolist()
    changes = [rise_N.mean().item(), *mean_interval(rise_N.numpy())]
    change, change_low, change_high = (100 * torch.tensor(changes, dtype=torch.float64).expm1()).tolist()
    return Measured(
        examples=len(nll_N),
        value=perplexity(nll_N),
        value_low=low,
        value_high=high,
        change=change,
        change_low=change_low,
        change_high=change_high,
        unit=" perplexity",
        change_unit="%",
    )


def _digest(windows_NS: Tensor) -> str:
    return hashlib.sha256(windows_NS.numpy().tobytes()).hexdigest()
