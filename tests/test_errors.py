"""Whatever an error quotes, its message stays one printable line, and it survives the way back from an actor."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from testbed.errors import ClusterError, CommError, ConfigError, EnvironmentFault, TestbedError

TEXT = st.text(st.characters(exclude_categories=()))  # surrogates too: words of a command line that are not UTF-8


@given(TEXT)
@example("erased\x1b[2K and over\rwritten")
@example("next\x85line\u2028and\x0bmore")
@example("\udcff")
def test_messages_are_one_printable_line(text: str) -> None:
    for error in (TestbedError(text), EnvironmentFault(text), CommError(text, [1]), ConfigError(text, text, text)):
        assert str(error).isprintable()
        assert len(str(error).splitlines()) <= 1
        str(error).encode()


def test_a_value_is_quoted_as_it_is_but_never_at_length() -> None:
    assert str(ConfigError("results_dir", "a  b\n", "no")) == r"results_dir=a  b\n: no"
    assert str(ConfigError("tokens", "9" * 201, "no")) == f"tokens={'9' * 200}...: no"
    assert str(TestbedError("rank 2 is missing\nafter 5 s")) == "rank 2 is missing after 5 s"


@pytest.mark.parametrize("error", [ConfigError("seed", -1, "no"), CommError("late", [2]), ClusterError("gone", [0])])
def test_errors_come_back_from_actors(error: TestbedError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
