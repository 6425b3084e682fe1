from __future__ import annotations

import pytest

from testbed.progress import console, steps


def test_foreign_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "failed: writev [/tmp/x] [red]Bad address[/] :bug:"
    console().print(text, soft_wrap=True)
    with steps("two [/steps]", 2.0) as shown:
        shown.begin("[/begin]")
        shown.done(1.0, text)
    assert capsys.readouterr().out.splitlines() == [text, "two [/steps]", text]
