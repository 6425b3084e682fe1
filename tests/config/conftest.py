from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from testbed.config.fields import CONF


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ that replaces conf/ in the test."""
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr("testbed.config.fields.CONF", tmp_path / "conf")
    return tmp_path / "conf"
