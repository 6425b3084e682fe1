"""What the files and folders that a configuration names hold. A signature has the hash of this, not the path.

Whoever replaces a checkpoint, a model or data under the same name therefore gets another results folder, and a folder
that has moved continues its run. Only files that loaders read count. Their whole content is hashed, by the supervisor
and in the sandbox: 538 MB in the page cache take 0.37 s of a core's time, 1.5 GB/s (AMD EPYC with SHA instructions). A
hash kept by path, size and time of change would miss a file that was restored with its old time.

Data that belong to packages are known by the packages' versions (testbed.results.provenance).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from testbed.config.schema import (
    AccuracyConfig,
    AccuracyLmConfig,
    Config,
    Data,
    LanguageModel,
    LatencyConfig,
    Texts,
)
from testbed.datasets.corpora import FOLDER_OF, corpus_named
from testbed.datasets.folders import content_hash
from testbed.results.provenance import short_hash


def content_hashes(config: Config) -> dict[str, str]:
    """Key of a file or folder -> hash of the names and contents of the files that are read there.

    Keys that name nothing are left out. A file that is missing counts as missing: its loader says so. Raises
    ConfigError and EnvironmentFault, as the loaders do, for a folder that they refuse and a file that cannot be read.
    """
    found = {}
    for key, folder, files in _named(config):
        names = [os.path.relpath(path, folder) for path in files]
        held = [content_hash(path).hex() if path.is_file() else None for path in files]
        found[key] = short_hash([names, held])
    return found


def _named(config: Config) -> Iterator[tuple[str, Path, Sequence[Path]]]:
    """(key, folder from which names count, files)."""
    if isinstance(config, LatencyConfig) and config.checkpoint:
        path = Path(config.checkpoint)
        yield "checkpoint", path, [path]  # by its content alone
    model = getattr(config, "model", None)
    if isinstance(model, LanguageModel) and model.name == "hub_folder":
        from testbed.models.hub import hub_files  # brings torch

        folder = Path(model.folder).resolve()
        yield "model.folder", folder.parent, hub_files(folder)  # rows carry the folder's name
    if isinstance(config, AccuracyConfig):
        yield "data.folder", *_images(config.data)
    if isinstance(config, AccuracyLmConfig) and config.data.folder:
        yield "data.folder", *_texts(config.data)


def _images(data: Data) -> tuple[Path, Sequence[Path]]:
    from testbed.datasets.image_files import class_folders  # brings torch
    from testbed.datasets.images import CIFAR_FILES, FASHION_MNIST, IDX_FILES

    if data.name == "image_folder":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are not read: the run itself warns
            train, test, _ = class_folders(Path(data.folder), data.side)
        return Path(data.folder), [*train.paths, *test.paths]
    folder = Path(data.folder) if data.folder or data.name != "fashion_mnist" else FASHION_MNIST
    return folder, [folder / name for name in (IDX_FILES if data.name == "fashion_mnist" else CIFAR_FILES)]


def _texts(data: Texts) -> tuple[Path, Sequence[Path]]:
    folder, corpus = Path(data.folder), FOLDER_OF[data.name]
    splits = ["train"] * (data.train == corpus) + ["held_out"] * (corpus in data.corpora)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = {path for split in splits for path in corpus_named(corpus, split).locate(split, folder, folder)}
    return folder, sorted(files)
