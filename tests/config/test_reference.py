from __future__ import annotations

import dataclasses
import re

from testbed.config import reference
from testbed.config.fields import choices
from testbed.config.schema import SCHEMAS, Config


def test_the_page_is_current() -> None:
    assert reference.DOCUMENT.read_text() == reference.document(), "run: make docs"


def test_every_key_and_choice_is_on_it() -> None:
    page = reference.document()
    for schema in (Config, *SCHEMAS.values()):
        for field in dataclasses.fields(schema):
            derived = field.name in ("settings", "profiles", "runner")
            assert derived or re.search(rf"`{field.name}[`.]", page), field.name
    for group in reference.GROUPS:
        for name in choices(group):
            assert f"- `{name}`" in page
    assert "- `astra.codebook_size` (`1024`): " in page
    assert max(map(len, page.splitlines())) <= reference.WIDTH


def test_a_key_has_its_default_its_rule_and_its_meaning() -> None:
    (item,) = re.findall(r"^- `time_scale` (.*(?:\n  .*)*)", reference.document(), re.MULTILINE)
    text = " ".join(item.split())
    assert text.startswith("(`1.0`): ") and "Allowed: a number from 0.1 to 1000, or auto." in text
