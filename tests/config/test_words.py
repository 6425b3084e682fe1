"""What is typed arrives: texts with any characters, and messages that name keys and values as they were typed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from testbed.config.load import as_written, load_config
from testbed.config.paths import expand_paths
from testbed.config.schema import LanguageModel
from testbed.config.words import PARSER, TEXT_KEYS, hydra_words, read_words
from testbed.errors import ConfigError

SMOKE = "+experiment=smoke"
ODD = r"""/tmp/a=b c,ä#~{x}[y](z)$'";&|\d!*?%@:日本\\"""
TEXTS = st.text(st.characters(exclude_characters="\0\n", exclude_categories=["Cs"])).filter(
    lambda text: "${" not in text
)


def folder_of(text: str) -> str:
    (word,) = read_words([SMOKE, f"model.folder={text}"]).values
    model = LanguageModel("hub_folder", word.value)
    expand_paths(model)
    return model.folder


@given(TEXTS)
@example(ODD)
@example("true")
@example("1e5")
@example("a\\'")
@example("'a'b'")
@example(" a ")
def test_a_folder_is_the_text_that_was_typed(text: str) -> None:
    if text[:1] in ("'", '"', "~"):
        return
    try:
        assert folder_of(text) == text
    except ConfigError as error:
        assert str(error).isprintable() and not text.isprintable()


@given(TEXTS)
@example(ODD)
@example("a' \\\\")
def test_hydra_gets_such_a_text_in_quotes(text: str) -> None:
    given_words = read_words([SMOKE, f"model.folder={text}", "devices=[1,2]"])
    choice, folder, devices = hydra_words(given_words)
    assert (choice, devices) == (SMOKE, "++devices=[1,2]")
    assert PARSER.parse_override(folder).value() == given_words.values[0].value


def test_an_odd_folder_passes_all_checks() -> None:
    config = load_config([SMOKE, f"results_dir={ODD}", "device.name=1e5", "preset="])
    assert (config.results_dir, config.device.name, config.preset) == (ODD, "1e5", "")


def test_quotes_around_the_whole_are_removed() -> None:
    assert [folder_of(text) for text in ("'a,b'", '"a\'b"', r"'a\'b'", "'a','b'", "'a")] == [
        "a,b",
        "a'b",
        "a'b",
        "'a','b'",
        "'a",
    ]


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, conf: Path) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    assert [folder_of(text) for text in ("~", "~/x y", "./~", "a~")] == ["/home/user", "/home/user/x y", "./~", "a~"]
    path = conf / "config.yaml"
    path.write_text(path.read_text().replace("results_dir: results ", "results_dir: ~/results "))
    assert load_config([SMOKE]).results_dir == "/home/user/results"
    with pytest.raises(
        ConfigError, match=r"^folder=~nobody-here/x: there is no home folder ~nobody-here; .* ./~nobody-h"
    ):
        folder_of("~nobody-here/x")


@pytest.mark.parametrize("text", ["a\tb", "\x1b[2J", "a\x85b", "a\u2028b", "a\udcffb"])
def test_a_path_has_no_control_characters(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a path in UTF-8 without control characters") as caught:
        folder_of(text)
    assert str(caught.value).isprintable()


def test_texts_are_the_keys_that_hold_one() -> None:
    assert {"results_dir", "checkpoint", "model.folder", "data.folder", "device.name", "device_mix"} <= TEXT_KEYS
    assert not {"methods", "devices", "time_scale", "topology.links", "model.layers"} & TEXT_KEYS


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("bandwidths=10,20", "bandwidths=10,20: is not one value; in a shell, a list is written 'bandwidths=[10,20]'"),
        (
            "astra.codec=a=b",
            """astra.codec=a=b: cannot be read; in a shell, a value with special characters is written """,
        ),
        ("methods=[a=b]", """methods=[a=b]: cannot be read; a list is written [a,b], and an item with special """),
        ("smoke", "override=smoke: cannot be read; it must be KEY=VALUE; did you mean +experiment=smoke?"),
        ("Smok", "override=Smok: cannot be read; it must be KEY=VALUE; did you mean +experiment=smoke?"),
        ("-x=3", "override=-x=3: cannot be read; it must be KEY=VALUE"),
        ("a@b=3", "override=a@b=3: keys cannot be moved"),
        ("~results_dir=x", "override=~results_dir=x: keys cannot be removed"),
        ("data=english", "data=english: unknown; experiment smoke has no data"),
        ("presets.quick.devices=1", "presets.quick.devices=1: unknown"),
        ("model.pretrained=2", "model.pretrained=2: must be true or false"),
        ("tokens='٦٤'", "tokens=٦٤: must be whole numbers"),
        ("tokens=" + "9" * 300, f"tokens={'9' * 200}...: must be a number of at most 64 bits"),
        ("x" * 999 + "=1", f"{'x' * 200}...=1: unknown"),
    ],
)
def test_a_word_that_cannot_be_used_is_named_as_it_was_typed(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([SMOKE, word])
    assert str(caught.value).startswith(message) and str(caught.value).isprintable()


def test_the_proposed_word_can_be_pasted() -> None:
    with pytest.raises(ConfigError) as caught:
        read_words([SMOKE, """astra.codec=a'b="c"\\"""])
    (word,) = shlex.split(str(caught.value).partition(" is written ")[2])
    assert read_words([SMOKE, word]).values[0].value == """a'b="c"\\"""


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("Experiment=smoke", "did you mean [+]experiment=smoke"),
        ("experiments=peers", "did you mean [+]experiment=peers"),
    ],
)
def test_a_mistyped_experiment_is_not_a_missing_one(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config([word])
    with pytest.raises(ConfigError, match="experiment=SMOKE: unknown; did you mean smoke?"):
        load_config(["experiment=SMOKE"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("devices=010", "devices=010: pipeline needs"),
        ("devices=[1,065]", "devices=065: must be from 1 to tokens=64"),
        ("bandwidths=1e303", "bandwidths=1e303: must be"),
        ("bandwidths=[1e1,-0.0]", "bandwidths=-0.0: must be"),
        ("repeats=2.0", "repeats=2.0: must be"),
        ("devices=True", "devices=True: must be"),
        ("methods=[true]", "methods=true: unknown"),
        ("topology.links.0='h9 d0'", "topology.links.0=h9 d0: must name devices"),
        ("astra={groups:[7]}", "astra.groups=7: must be a positive divisor"),
        ("network=analytic runner=clock_check", "network=analytic: must be a backend with links"),
        ("network.backend=analytic runner=clock_check", "network.backend=analytic: must be a backend with links"),
        ("topology=ring network=loopback", "topology=ring: needs network=mininet"),
        ("astra.optimizations=dedup", "astra.groups=16 (conf/method/astra.yaml): must be 1 for"),
        ("model=vit_tiny model.heads=5", "model.heads=5: must divide model.hidden=96"),
        ("model.hidden=7", "model.heads=12 (conf/model/vit_base.yaml): must divide model.hidden=7"),
        ("tokens={x:{y:1}}", "tokens.x.y=1: must be one value or a flat list"),
    ],
)
def test_a_message_has_key_and_value_as_written(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([SMOKE, *shlex.split(words)])
    assert str(caught.value).startswith(message)


def test_values_of_presets_and_files_are_named_with_their_place() -> None:
    words = ["+experiment=device_sweep", "preset=odd", "tokens=6", "methods=astra"]
    with pytest.raises(
        ConfigError, match=r"^devices=7 \(conf/experiment/device_sweep.yaml, preset=odd\): must be from 1 t"
    ):
        load_config(words)
    with pytest.raises(
        ConfigError, match=r"^data.folder= \(conf/data/image_folder.yaml\): is needed; it must be a folder"
    ):
        load_config(["+experiment=accuracy_vit", "data=image_folder"])


def test_an_error_of_a_run_is_named_too() -> None:
    words = ["+experiment=accuracy_vit", "uncompressed.batch=1_000", "data.folder=~/x"]
    error = ConfigError("uncompressed.batch", 1000, "must be less")
    assert str(as_written(error, words)) == "uncompressed.batch=1_000: must be less"
    assert str(as_written(ConfigError("data.folder", Path("~/x").expanduser(), "no"), words)) == "data.folder=~/x: no"
    assert (
        str(as_written(ConfigError("model.classes", 10, "no"), words))
        == "model.classes=10 (conf/model/vit_tiny.yaml): no"
    )
    assert str(as_written(ConfigError("elsewhere", [1, 2], "no"), words)) == "elsewhere=[1,2]: no"


def test_a_grid_that_would_fill_the_memory_is_refused() -> None:
    many = "[" + ",".join(map(str, range(1, 1001))) + "]"
    with pytest.raises(
        ConfigError, match=r"^(bandwidths|tokens)=1000 values: makes 4000000 points together .* may have 100000$"
    ):
        load_config(
            [
                SMOKE,
                "methods=[single,astra]",
                "astra.groups=[1,2,4]",
                "astra.optimizations=paper",
                f"bandwidths={many}",
                f"tokens={many}",
            ]
        )
    with pytest.raises(ConfigError, match="^int8_tokens=1000 values: makes 4000000 points"):
        load_config(["+experiment=accuracy_vit", f"seeds={many}", f"int8_tokens={many}", "stages=k-means", "groups=1"])
