from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from experiments.cost_model.analytic import analytic_row
from experiments.cost_model.point_costs import PointCosts
from testbed.config.device_mix import emulated_devices, share_speeds
from testbed.config.fields import CONF, choices, read_curve
from testbed.config.load import load_config
from testbed.config.schema import DecoderLatencyConfig
from testbed.device.spec import efficiency
from testbed.errors import ConfigError
from testbed.grid import points
from testbed.methods import load_method
from testbed.work import bytes_pass

BAD = [  # words after +experiment=smoke; what the message must contain
    ("bandwidths=0", "bandwidths=0: must be numbers from 0.001 to 1000000 (Mbps)"),
    ("bandwidths=[10,-5]", "bandwidths=-5:"),
    ("bandwidths=fast", "bandwidths=fast:"),
    ("bandwidths=[10,fast]", "bandwidths=fast:"),
    ("bandwidths=nan", "bandwidths=nan:"),
    ("bandwidths=inf", "bandwidths=inf:"),
    ("bandwidths=1e303", "bandwidths=1e303:"),  # as bit/s it would be infinite
    ("bandwidths=[]", "bandwidths=[]:"),
    ("bandwidths=10,20", "bandwidths=10,20: is not one value"),
    ("bandwidths=[10,20", "bandwidths=[10,20: cannot be read; a list is written [a,b]"),
    ("bandwidths=[[10]]", "bandwidths=[[10]]: must be one value or a flat list"),
    ("devices=0", "devices=0: must be whole numbers >= 1"),
    ("devices=[2,65]", "devices=65: must be from 1 to tokens=64"),
    ("devices=2.5", "devices=2.5:"),
    ("devices=5", "devices=5: pipeline needs 1 to 2 devices"),
    ("methods=asta", "methods=asta: unknown; did you mean astra or galaxy?"),
    ("methods=[]", "methods=[]:"),
    ("method=astra", "method=astra: unknown; methods are chosen by 'methods="),
    ("model=vit_bse", "model=vit_bse: unknown; did you mean vit_base"),
    ("model=3", "model=3: unknown"),
    ("topology=stra", "topology=stra: unknown; did you mean star?"),
    ("topology.trunk_share=0", "topology.trunk_share=0: must be a number above 0"),
    (
        "topology=ring network=loopback",
        "topology=ring: needs network=mininet; loopback emulates one link for each device",
    ),
    ("all_gather=rings", "all_gather=rings: must be one of auto, pairwise"),
    ("all_gather=hierarchical", "all_gather=hierarchical: needs devices at two or more switches; topology=star"),
    ("queue_kb=1", "queue_kb=1: must be a number from 4 to 1000000 (KB)"),
    ("topology=mesh queue_kb=16", "queue_kb=16: must be 1000: queues belong to switch ports"),
    ("devices=254", "devices=254: must be from 1 to 253"),
    ("network=minnet", "network=minnet: unknown; did you mean mininet?"),
    ("network.backend=minnet", "network.backend=minnet:"),
    ("device_mix=gtx1660ti+gtx", "device_mix=gtx: unknown; did you mean gtx1660ti"),
    ("device_mix=gtx1660ti+half_gtx1660ti+gtx1660ti", "must name at most 2 devices"),
    ("device_mix=[gtx1660ti]", "device_mix=[gtx1660ti]: unknown; did you mean gtx1660ti"),
    ("profiles.gtx1660ti.reference_s=1", "profiles.gtx1660ti.reference_s=1: unknown"),
    ("partition=fair", "partition=fair: must be one of equal, speed"),
    ("partition=[equal,speed]", "partition=speed: must be equal, or device_mix must name devices of different speeds"),
    (
        "device_mix=gtx1660ti+half_gtx1660ti partition=speed methods=block block.blocks=2",
        "partition=speed: must be equal for block",
    ),
    ("device=gtx", "device=gtx: unknown; did you mean gtx1660ti?"),
    ("bandwith=3", "bandwith=3: unknown; did you mean bandwidths?"),
    ("+bandwith=3", "bandwith=3: unknown; did you mean bandwidths?"),
    ("model.layer=3", "model.layer=3: unknown; did you mean layers"),
    ("model.heads=7", "model.heads=7: must divide model.hidden=768"),
    ("model.layers=0", "model.layers=0: must be a whole number from 1 to 1000000"),
    ("model.layers=two", "model.layers=two: must be a whole number from 1 to 1000000"),
    ("device.reference_s=0", "device.reference_s=0: must be a finite number > 0 (seconds)"),
    ("tokens=null", "tokens=null: must be whole numbers from 1 to 1000000"),
    ("tokens=[64,0]", "tokens=0: must be whole numbers from 1 to 1000000"),
    ("tokens.x=3", "tokens.x=3: must be"),
    ("tokens=${nowhere}", "nowhere"),
    ("repeats=0", "repeats=0: must be a whole number from 1 to 1000000"),
    ("point_budget_s=-1", "point_budget_s=-1:"),
    ("time_scale=0", "time_scale=0: must be a number from 0.1 to 1000"),
    ("time_scale=1e9", "time_scale=1e9:"),
    ("time_scale=fast", "time_scale=fast: must be a number from 0.1 to 1000, or auto"),
    ("time_scale=[1.0,2.0]", "time_scale=[1,2]: must be a number from 0.1 to 1000, or auto"),
    ("time_scale=true", "time_scale=true: must be"),
    ("network=analytic compute_mode=hold", "compute_mode=hold: must be auto for network=analytic"),
    ("network=analytic runner=clock_check", "network=analytic: must be a backend with links: runner clock_check"),
    ("seed=-1", "seed=-1:"),
    ("compute_mode=fast", "compute_mode=fast: must be one of auto, execute, hold, replay"),
    ("resume=maybe", "resume=maybe: must be true or false"),
    (
        "runner=latncy",
        "runner=latncy: unknown; did you mean latency",
    ),
    ("~astra", "override=~astra: keys cannot be removed"),
    ("nonsense", "override=nonsense: cannot be read"),
    ("=3", "override==3: cannot be read"),
    ("astra=5", "astra=5: must be astra.KEY=VALUE"),
    ("astra.grups=1", "astra.grups=1: unknown; did you mean groups"),
    ("single.groups=1", "single.groups=1: unknown; allowed: none"),
    ("methods=single astra.grups=1", "astra.grups=1: unknown"),
    ("astra.groups=[1,x]", "astra.groups=x: must be of type int"),
    ("astra.groups=[]", "astra.groups=[]:"),
    ("astra.groups=7", "astra.groups=7:"),  # does not divide 768
    ("astra.codebook_size=1000", "astra.codebook_size=1000:"),
    ("astra.optimizations=fast", "astra.optimizations=fast: must be paper, auto, or"),
    ("astra.optimizations=dedup", "astra.groups=16 (conf/method/astra.yaml): must be 1 for astra.optimizations=dedup"),
    ("sequence.codec=int9", "sequence.codec=int9: unknown; did you mean int8"),
    ("sequence.codec=8", "sequence.codec=8: must be of type str, as fp32"),
    ("sequence.gather=[x,vk]", "sequence.gather=vk: allowed: x, kv"),
    ("tensor.sync=mesh", "tensor.sync=mesh: allowed: ring, star, gather"),
    ("methods=ring ring.directions=3", "ring.directions=3: allowed: 1, 2"),
    ("methods=block block.blocks=4", "block.blocks=4: must divide 2 layers; allowed: 1, 2"),
    ("methods=prism prism.segment_means=33", "prism.segment_means=33: must be from 1 to 32: 2 devices have 65 rows"),
]


PRESETS = [
    (experiment, preset)
    for experiment in choices("experiment")
    for preset in OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml").get("presets", {})
]


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_is_valid(experiment: str) -> None:
    assert load_config([f"+experiment={experiment}"]).experiment == experiment.replace("/", "_")


@pytest.mark.parametrize(("experiment", "preset"), PRESETS)
def test_every_preset_is_valid(experiment: str, preset: str) -> None:
    assert load_config([f"+experiment={experiment}", f"preset={preset}"]).preset == preset


@pytest.mark.parametrize("group", ["model", "topology", "device", "network"])
def test_every_choice_is_valid_and_says_its_name(group: str) -> None:
    for name in choices(group):
        vision = group != "model" or name.startswith("vit")
        words = ["+experiment=smoke"] if vision else ["+experiment=accuracy_lm", "model.folder=somewhere"]
        section = getattr(load_config([*words, f"{group}={name}"]), group)
        assert name == (section.backend if group == "network" else section.name)


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input_is_named(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["+experiment=smoke", *words.split()])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_experiment_lists_them_all() -> None:
    with pytest.raises(ConfigError, match=", ".join(choices("experiment"))):
        load_config([])
    with pytest.raises(ConfigError, match="did you mean smoke"):
        load_config(["+experiment=smok"])


def test_the_sweep_is_the_papers() -> None:
    config = load_config(["+experiment=bandwidth_sweep"])
    assert config.methods == ["single", "tensor", "sequence", "pipeline", "astra"]
    assert config.bandwidths == [10, 20, 50, 100, 200, 500]
    assert (config.devices, config.tokens, config.model.layers, config.model.hidden) == ([4], [1024], 12, 768)
    axes = {"groups": [1, 16, 32], "codebook_size": 1024, "optimizations": ["paper", "auto"]}
    assert config.settings["astra"] == axes | {
        "quantized": "residual",
        "num_quantizers": 1,
        "pre_rotation": "none",
        "anchor_tokens": 0,
    }
    assert (config.device.name, config.device.reference_s) == ("gtx1660ti", 0.350)


def test_overrides_reach_every_kind_of_key() -> None:
    words = "experiment=smoke devices=[2,4] bandwidths=12.5 methods=astra model='vit_s14' model.layers=3 astra.groups=4"
    words += " astra.optimizations=paper"
    config = load_config([*words.split(), "++seed=7", "network=loopback", "network=mininet"])
    assert (config.devices, config.bandwidths, config.methods, config.seed) == ([2, 4], [12.5], ["astra"], 7)
    assert (config.model.name, config.model.layers, config.model.pretrained) == ("vit_s14", 3, True)
    settings = {
        "groups": 4,
        "codebook_size": 1024,
        "optimizations": "paper",
        "quantized": "residual",
        "num_quantizers": 1,
    }
    settings |= {"pre_rotation": "none", "anchor_tokens": 0}
    assert list(config.variants()) == [("astra", settings)]
    assert config.network.backend == "mininet"  # the last one counts


def test_codecs_are_variants_and_points_of_their_own() -> None:
    config = load_config(["+experiment=smoke", "methods=sequence", "sequence.codec=[fp32,int8]", "bandwidths=10"])
    assert [settings["codec"] for _, settings in config.variants()] == ["fp32", "int8"]
    grid = points(config)
    assert sorted(point.columns["codec"] for point in grid) == ["fp32", "int8"]
    assert len({point.key for point in grid}) == 2
    assert "sequence int8, 2 devices, 64 tokens, 10 Mbps" in [point.label for point in grid]


def test_every_setting_can_be_an_axis() -> None:
    words = "methods=[sequence,block] sequence.gather=[x,kv] block.blocks=[1,4] block.sync=[ag,sp] bandwidths=10"
    grid = points(load_config(["+experiment=smoke", *words.split(), "model.layers=4"]))
    found = {(point.method, point.columns["settings"]) for point in grid}
    blocks = {"", "blocks=1", "sync=sp", "blocks=1,sync=sp"}  # four blocks and ag are the standard
    assert found == {("sequence", ""), ("sequence", "gather=kv"), *(("block", text) for text in blocks)}
    assert len({point.key for point in grid}) == len(grid) == 6


def test_what_only_latencies_have_is_refused_elsewhere() -> None:
    with pytest.raises(ConfigError, match="time_scale=auto: must be a number from 0.1 to 1000 for runner fidelity"):
        load_config(["+experiment=fidelity", "time_scale=auto"])
    with pytest.raises(ConfigError, match="network=analytic: must be a backend with links: runner fidelity"):
        load_config(["+experiment=fidelity", "network=analytic"])
    assert load_config(["+experiment=smoke", "network=analytic", "time_scale=auto"]).time_scale == "auto"
    assert load_config(["+experiment=smoke", "time_scale=2"]).time_scale == 2.0


def test_duplicates_are_dropped() -> None:
    config = load_config(["+experiment=smoke", "bandwidths=[10,10.0,20]", "devices=[2,2]", "methods=[single,single]"])
    assert (config.bandwidths, config.devices, config.methods) == ([10.0, 20.0], [2], ["single"])


def test_speed_comes_from_the_profile() -> None:
    config = load_config(["+experiment=smoke", "methods=single", "device.reference_s=0.7"])
    device = config.emulated_device()
    single = load_method("single").work(config.model.shape(1024), 0, 1)
    reference = config.device.reference_model
    reference_work = load_method("single").work(reference.shape(reference.tokens), 0, 1)
    assert device.seconds(reference_work) == pytest.approx(0.7, rel=1e-9)
    # The smoke test's model has 2 layers instead of 12.
    assert device.seconds(single) == pytest.approx(0.7 * single.macs / reference_work.macs, rel=0.05)
    assert (device.memory_bytes_per_s, device.memory_bytes) == (216e9, 6e9)
    assert (device.launch_s, device.exchange_s, device.staging_bytes_per_s) == pytest.approx((5e-6, 250e-6, 6e9))
    # 216 MB, read and written by passes over memory; nothing is multiplied, and it takes time.
    assert device.seconds(bytes_pass(216 * 10**6, 2)) == pytest.approx(1e-3 + 2 * 5e-6)


@pytest.mark.parametrize(
    "text", ["1@128 0.5@32", "0.5@32 1@32", "1@32 0.5@128", "0@32 1@128", "0.5@32 1.5@128", "0.5@0 1@8", "a@b", "0.5"]
)
def test_an_efficiency_that_falls_or_is_zero_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^device.row_efficiency=.*: must be SHARE@SIZE words by ascending size"):
        load_config(["+experiment=smoke", f"device.row_efficiency='{text}'"])


def test_a_device_that_needs_longer_for_its_launches_than_for_the_reference_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^device.reference_s=0.001.*: must be more than the 0.0\d+ s of launches"):
        load_config(["+experiment=smoke", "device.reference_s=0.001"])


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(0.01, 1)), max_size=6), st.floats(1, 2e4), st.floats(1, 2e4))
def test_a_larger_product_never_runs_at_a_smaller_share(points: list[tuple[float, float]], a: float, b: float) -> None:
    sizes, shares = sorted({size for size, _ in points}), sorted(share for _, share in points)
    text = " ".join(f"{share}@{size}" for size, share in zip(sizes, shares, strict=False))
    curve = read_curve(text)
    low, high = (efficiency(curve, size) for size in sorted((a, b)))
    assert 0 < low <= high * (1 + 1e-12) <= 1 + 1e-9
    assert all(efficiency(curve, size) == pytest.approx(share) for size, share in curve)


MIX = "device_mix=gtx1660ti+half_gtx1660ti"


def test_a_mix_goes_round_and_the_baseline_is_its_fastest() -> None:
    config = load_config(["+experiment=smoke", "devices=[2,3]", MIX, "partition=[equal,speed]"])
    fast, slow = (
        load_config(["+experiment=smoke", f"device={name}"]).emulated_device()
        for name in MIX.partition("=")[2].split("+")
    )
    assert fast.macs_per_s == pytest.approx(2 * slow.macs_per_s, rel=0.002) and fast.memory_bytes_per_s == 216e9
    assert emulated_devices(config, "astra", 3) == [fast, slow, fast]
    assert emulated_devices(config, "single", 3) == [fast, fast, fast]
    assert share_speeds(config, "astra", 3) == [(), (1.0, pytest.approx(0.5), 1.0)]
    assert share_speeds(config, "single", 3) == [()]


def test_a_profile_of_a_mix_is_checked(conf: Path) -> None:
    text = (CONF / "device" / "half_gtx1660ti.yaml").read_text()
    for bad, message in (
        (text.replace("0.700", "0"), r"^reference_s=0 \(.*/?device/odd.yaml\): must be a finite number"),
        (
            text.replace("0.700", "${oc.env:HOME}"),
            r"device.reference_s=\$\{oc.env:HOME\} \(.*line 4\): must not contain",
        ),
        (text.replace("heads: 12", "heads: 7"), r"^reference_model.heads=7 \(.*\): must divide"),
        ("name: odd\n", "odd"),
        (text + "color: red\n", "device_mix=odd: must be a profile of a device: Key .color. not in"),
        ("a: [", r"^device=odd \(conf/device/odd.yaml, line 1\): is not YAML: "),
    ):
        (conf / "device" / "odd.yaml").write_text(bad)
        with pytest.raises(ConfigError, match=message):
            load_config(["+experiment=smoke", "device_mix=gtx1660ti+odd"])


def test_a_new_method_needs_one_yaml(conf: Path) -> None:
    (conf / "method" / "novel.yaml").write_text("groups: [2, 4]\nshape: round\n")
    with pytest.raises(ConfigError, match="novel.groups=x"):  # found and checked, and there is no such module yet
        load_config(["+experiment=smoke", "methods=novel", "novel.groups=x"])
    with pytest.raises(ConfigError, match="methods=novel"):
        load_config(["+experiment=smoke", "methods=novel", "novel.groups=8"])


def test_links_on_the_command_line() -> None:
    config = load_config(["+experiment=smoke", "topology.links=[h* d0,h1 d0 0.5]"])
    assert config.topology.graph(2).share["d0", "h1"] == 0.5
    for line, reason in (("h9 d0", "must name devices from h0 to h1"), ("x d0", "must be lines as")):
        with pytest.raises(ConfigError, match=rf"topology\.links={line}: {reason}"):
            load_config(["+experiment=smoke", f"topology.links=[{line}]"])


def test_one_device_needs_none_of_the_links() -> None:
    links = "topology.links=[h0 d0,h1 d0,h2 d0,h3 d0 0.5]"
    words = ["+experiment=smoke", "methods=[single,sequence]", "network=analytic", links]
    config = load_config([*words, "devices=[1,4]", "queue_kb=16", "all_gather=ring"])
    assert not config.topology.graph(1).shares and config.topology.graph(1).is_star
    rows = [analytic_row(PointCosts(point, config)) for point in points(config)]
    assert {(row["method"], row["devices"], row["wire_ms"] > 0) for row in rows} == {
        ("single", 1, False),
        ("sequence", 1, False),
        ("sequence", 4, True),
    }
    assert load_config(["+experiment=smoke", "devices=1", "topology=ring", "network=loopback"])
    with pytest.raises(ConfigError, match="topology.links=h2 d0: must name devices from h0 to h1: there are 2"):
        load_config([*words, "devices=[1,2]"])


def test_a_decoder_is_an_experiment_of_its_own() -> None:
    config = load_config(["+experiment=decoder_sweep", "network=analytic", "tokens=[64,512]", "astra.anchor_tokens=4"])
    assert isinstance(config, DecoderLatencyConfig) and config.model.shape(64).causal
    rows = [analytic_row(PointCosts(point, config)) for point in points(config)]
    assert {row["model"] for row in rows} == {"smollm2_135m_q4"} and {row["layers"] for row in rows} == {30}
    assert all(row["formula_bytes"] > 0 for row in rows if row["method"] == "astra")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "methods=[single,tensor]",
            "methods=tensor: supports Vision Transformers only; with model=smollm2_135m_q4 allowed: ",
        ),
        ("model.layers=3", "model.layers=3: "),
        ("model=hub_folder model.folder=nowhere", "model.folder=nowhere: no such folder"),
        ("astra.anchor_tokens=128", "astra.anchor_tokens=128: must be 0, or for a causal model less than 128"),
        ("astra.quantized=all", "astra.quantized=all: "),
    ],
)
def test_what_a_decoder_cannot_do_is_said(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(["+experiment=decoder_sweep", *words.split()])
    with pytest.raises(ConfigError, match="astra.quantized=keys_values: must be residual but for a causal model"):
        load_config(["+experiment=bandwidth_sweep", "astra.quantized=keys_values"])
