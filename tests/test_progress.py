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


@pytest.mark.parametrize("columns", ["0", "1", "79"])
def test_a_terminal_without_a_width_still_gets_every_letter(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the output for a terminal
    found = console()
    assert found.is_terminal and found.width == 80
    with found.capture() as captured:
        found.print("finished 3 of 20 points", soft_wrap=True)
    assert "finished 3 of 20 points" in captured.get()
