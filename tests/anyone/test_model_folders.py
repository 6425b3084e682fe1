"""Any model folder: rows, the beginning of a measurement, or one line; and the right line for what fuzzing found."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import latency
from testbed import run
from testbed.network import sandbox
from tests.anyone.command import examples, tried
from tests.anyone.model_folders import EDITS, NAMES, Edit, edited, save_models

GRID = ["methods=[single,astra]", "astra.groups=2", "astra.codebook_size=4", "tokens=16", "bandwidths=10", "devices=2"]
SWEEP = ["+experiment=decoder_sweep", "model=hub_folder", *GRID]
QUALITY = ["+experiment=accuracy_lm", "model=hub_folder", "data=text_folder", "data.length=16", "data.windows=2"]
QUALITY += ["data.codebook_windows=4", "groups=2", "codebook_sizes=4", "anchor_tokens=[0,2]", "devices=2"]

BEGUN = 130  # as where a user interrupts the run when it starts the cluster

KINDS = st.sampled_from(["llama", "llama", "gpt2", "gpt2", "vit"])
EDITED = st.lists(EDITS, max_size=2)
VARIANTS = ["quantized=keys_values", "quantized=normalized", "pre_rotations=pca", "num_quantizers=2", "int8_tokens=1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for i in range(30):
        (folder / f"part {i}.txt").write_text(" ".join(f"{i * k % 97} sheep and {k} goats" for k in range(9)))
    return folder


@pytest.fixture(autouse=True, scope="module")
def in_process() -> Iterator[None]:
    """The sandbox is this process, and a run ends where it would start a cluster."""

    def supervise(argv: list[str], backend: str) -> int:
        with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
            patch.setenv("TESTBED_BACKEND", backend)
            patch.setenv("TESTBED_SCRATCH", scratch)
            code = run.main(argv)
        return 0 if code == BEGUN else code

    def as_far_as_here(config: Any, backend: str, devices: int, *rest: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "supervise", supervise)
        patch.setattr(latency, "ClusterBench", as_far_as_here)
        yield


Sweep = Callable[[str, str, list[Edit], str], None]


@pytest.fixture(scope="module")
def sweep(models: dict[str, Path]) -> Sweep:
    def go(kind: str, name: str, edits: list[Edit], network: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            model = edited(models[kind], edits, Path(folder) / name)
            words = [f"model.folder={model}", f"network={network}", f"results_dir={folder}/results"]
            tried(f"model folders, {network}", [*SWEEP, *words])

    return go


@examples(20)
@given(KINDS, st.sampled_from(NAMES), EDITED)
def test_the_cost_model(sweep: Sweep, kind: str, name: str, edits: list[Edit]) -> None:
    sweep(kind, name, edits, "analytic")


@examples(15)
@given(KINDS, st.sampled_from(NAMES), EDITED)
def test_the_inputs_of_a_measurement(sweep: Sweep, kind: str, name: str, edits: list[Edit]) -> None:
    sweep(kind, name, edits, "loopback")


@examples(8)
@given(KINDS, st.sampled_from(NAMES), EDITED, st.sampled_from(VARIANTS))
def test_perplexity(
    models: dict[str, Path], texts: Path, kind: str, name: str, edits: list[Edit], variant: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = edited(models[kind], edits, Path(folder) / name)
        words = [f"model.folder={model}", f"data.folder={texts}", f"results_dir={folder}/results"]
        tried("model folders, perplexity", [*QUALITY, *words, variant])
