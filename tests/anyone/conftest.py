from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import accuracy_common, accuracy_lm
from experiments.measurement import decoder_inputs, vit_inputs
from testbed.config import compose, fields
from tests.anyone.command import endings


@pytest.fixture(autouse=True, scope="package")
def counted() -> Iterator[None]:
    """Print how many inputs each generator tried, and how they ended; shown with ``-s``."""
    yield
    for (generator, how), number in sorted(endings.items()):
        print(f"\n{generator}: {number} ended with {how}", end="")
    print()


@pytest.fixture(autouse=True, scope="package")
def folder_for_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of these tests alone, which all their runs share."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for module in (accuracy_common, accuracy_lm, decoder_inputs, vit_inputs):
            patch.setattr(module, "CACHE", folder)
        patch.setattr("analysis.report.terminal.write_report", lambda folder, run=None: [])  # seconds for figures
        yield folder


@pytest.fixture(autouse=True, scope="package")
def joined_once() -> Iterator[None]:
    """Hydra joins each choice of files once, which takes most of the time of an input that is refused."""
    join, own = compose._joined, fields.CONF
    joined = cache(lambda groups: join(dict(groups)))

    def remembered(groups: dict[str, str]) -> Any:
        if own != fields.CONF:  # a copy, whose files change
            return join(groups)
        parts, config = joined(tuple(groups.items()))
        return parts, copy.deepcopy(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "_joined", remembered)
        yield


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Models are tiny here, and threads that wait for each other take many times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
