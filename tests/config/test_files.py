"""A file of conf/ means what it says: values that YAML and the command line read differently are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.config.load import load_config
from testbed.errors import ConfigError

MINE = """# @package _global_
experiment: mine
methods: [single]
bandwidths: 10
tokens: 64
"""


def load(conf: Path, lines: str, *words: str) -> object:
    (conf / "experiment" / "mine.yaml").write_text(MINE + lines)
    return load_config(["+experiment=mine", *words])


@pytest.mark.parametrize(
    ("text", "yaml", "typed"),
    [
        ("010", "8", "the text 010"),
        ("1:30", "90", "the text 1:30"),
        ("0x10", "16", "the text 0x10"),
        ("0b11", "3", "the text 0b11"),
        ("1__0", "10", "the text 1__0"),
        ("on", "true", "the text on"),
        ("No", "false", "the text No"),
        ("~", "null", "the text ~"),
        ("", "null", "the text "),
        (".inf", "inf", "the text .inf"),
        ("nan", "the text nan", "nan"),
        ("int(3)", "the text int(3)", "3"),
    ],
)
def test_a_value_with_two_readings_is_refused(conf: Path, text: str, yaml: str, typed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(conf, f"devices: {text}\n")
    place = f"devices={text} (conf/experiment/mine.yaml, line 6)"
    assert str(caught.value).startswith(f"{place}: YAML reads it as {yaml}, the command line as {typed}; write ")


@pytest.mark.parametrize("lines", ["devices: [2, 010]", "presets: {odd: {devices: 010}}\ndevices: 2"])
def test_it_is_found_in_lists_and_in_presets(conf: Path, lines: str) -> None:
    with pytest.raises(ConfigError, match=r"^devices=010 \(conf/experiment/mine.yaml, line 6\): YAML reads it as 8"):
        load(conf, lines)


@pytest.mark.parametrize("text", ["1_0", "'10'", "+10", "10 # ten", '!!int "10"'])
def test_a_number_with_one_reading_is_taken(conf: Path, text: str) -> None:
    assert load(conf, f"devices: {text}\n").devices == [10]


@pytest.mark.parametrize(("text", "folder"), [("2024", "2024"), ("a=b, c", "a=b, c"), ("'1e5'", "1e5"), ("'on'", "on")])
def test_a_text_is_what_stands_there(conf: Path, text: str, folder: str) -> None:
    assert load(conf, f"devices: 2\nresults_dir: {text}\n").results_dir == folder


@pytest.mark.parametrize("text", ["1e5", "1.50", "true", "off", "0x10"])
def test_a_text_that_yaml_changes_is_refused(conf: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=rf'^results_dir={text} .*, line 7\): YAML reads .*, or "{text}" in quotes$'):
        load(conf, f"devices: 2\nresults_dir: {text}\n")


@pytest.mark.parametrize("words", [["device=odd"], ["device_mix=odd"]])
def test_device_profiles_and_methods_are_checked(conf: Path, words: list[str]) -> None:
    profile = (conf / "device" / "gtx1660ti.yaml").read_text()
    (conf / "device" / "odd.yaml").write_text(profile.replace("memory_gb: 6", "memory_gb: 06"))
    with pytest.raises(
        ConfigError, match=r"^device.memory_gb=06 \(conf/device/odd.yaml, line \d+\): YAML reads it as 6"
    ):
        load(conf, "devices: 2", *words)
    (conf / "method" / "ring.yaml").write_text("directions: 0x1\ncodec: fp32\n")
    with pytest.raises(
        ConfigError, match=r"^ring.directions=0x1 \(conf/method/ring.yaml, line 1\): YAML reads it as 1"
    ):
        load(conf, "devices: 2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have lines KEY: VALUE"),
        (b"# nothing\n", "must have lines KEY: VALUE"),
        (b"- a\n", "must have lines KEY: VALUE"),
        (b"\xef\xbb\xbfdevices: 2\n", "must be saved in UTF-8 without a byte order mark"),
        ("devices: 2\n".encode("utf-16"), "must be a file with text in UTF-8: "),
        (b"a: 1\na: 2\n", "must not have the same key twice: a"),
        (b"a: 1\n\tb: 2\n", r"is not YAML: found character '\\t'"),
        (b"a: &x 1\nb: *x\n", "must not repeat a value by an alias: b"),
        (b"<<: {a: 1}\n", "must have texts as keys: <<"),
        (b"on: 1\n", "must have texts as keys: on"),
        (b"model.layers: 1\n", "must not have a dot in a key; write a section: model.layers"),
        (b"a: 1\n---\nb: 1\n", "is not YAML: but found another document"),
        (b"presets: [quick]\n", "must be NAME: {KEY: VALUE, ...} for each preset"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(conf: Path, content: bytes, message: str) -> None:
    (conf / "experiment" / "mine.yaml").write_bytes(
        b"# @package _global_\n" + content if b"presets" in content else content
    )
    with pytest.raises(ConfigError) as caught:
        load_config(["+experiment=mine"])
    assert "(conf/experiment/mine.yaml" in str(caught.value) and message in str(caught.value).replace("\\t", r"\\t")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["é", "a=b", "Mine x", "a'b", "a,b", "a@b", "[x]", "010", "true", "null"])
def test_any_name_of_a_file_can_be_chosen(conf: Path, name: str) -> None:
    (conf / "topology" / f"{name}.yaml").write_text(f'name: "{name}"\nlinks: [h* d0]\ntrunk_share: 0.5\n')
    topology = load(conf, "devices: 2", f"topology={name}").topology
    assert (topology.name, topology.trunk_share) == (name, 0.5)


@pytest.mark.parametrize(
    ("defaults", "reason"),
    [
        ("[/nowhere]", "In 'topology/mine': Could not load 'nowhere'."),
        ("5", "Invalid defaults list in 'topology/mine', defaults must be a list (got int)"),
        ("[override /topology: ring]", "In 'topology/mine': Could not override 'topology@topology.topology'."),
    ],
)
def test_defaults_that_cannot_be_applied_are_named_with_their_file(conf: Path, defaults: str, reason: str) -> None:
    (conf / "topology" / "mine.yaml").write_text(
        f"defaults: {defaults}\nname: mine\nlinks: [h* d0]\ntrunk_share: 1.0\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(conf, "devices: 2", "topology=mine")
    where = "topology=mine (conf/topology/mine.yaml): its defaults cannot be applied: "
    assert str(caught.value) == where + reason


def test_a_damaged_file_that_takes_no_part_does_not_matter(conf: Path) -> None:
    (conf / "device" / "damaged.yaml").write_text("a: [")
    assert load(conf, "devices: 2")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("runner: latncy", r"^runner=latncy \(conf/experiment/mine.yaml\): unknown; did you mean latency"),
        ("runner: [latency]", r"^runner=\[latency\] \(conf/experiment/mine.yaml\): unknown"),
        ("preset: [quick]", r"^preset=\[quick\] \(conf/experiment/mine.yaml\): must be empty"),
        ("model: 3", r"^model=3"),
        ("topology: [star]", "In 'experiment/mine': .*: Cannot merge DictConfig with ListConfig"),
        ("time_scale: {a: 1}", r"^time_scale.a=1 \(conf/experiment/mine.yaml\): must be a number"),
    ],
)
def test_a_value_of_another_kind_is_named(conf: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(conf, f"devices: 2\n{line}\n")


def test_an_unknown_key_of_a_file_is_named_with_it(conf: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^bandwith=2 \(conf/experiment/mine.yaml\): unknown; did you mean bandwidths"
    ):
        load(conf, "devices: 2\nbandwith: 2\n")
    with pytest.raises(ConfigError, match=r"^devices=٤ \(conf/experiment/mine.yaml\): must be whole numbers"):
        load(conf, "devices: ٤\n")
