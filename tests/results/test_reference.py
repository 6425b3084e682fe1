from __future__ import annotations

from testbed.results import reference
from testbed.results.schema import SCHEMAS


def test_the_page_is_current() -> None:
    assert reference.DOCUMENT.read_text("utf-8") == reference.document(), "run: make docs"


def test_every_column_has_words_and_stands_on_it_once_for_each_kind_of_row() -> None:
    page = reference.document()
    names = [column.name for schema in SCHEMAS for column in schema.described]
    for schema in SCHEMAS:
        assert len({column.name for column in schema.described}) == len(schema.described)
        assert all(column.meaning and not column.meaning.endswith(".") for column in schema.described)
    for name in set(names):
        assert page.count(f"- **`{name}`**") + page.count(f"- `{name}`") == names.count(name), name
    assert max(map(len, page.splitlines())) <= reference.WIDTH
