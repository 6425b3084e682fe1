"""What ASTRA's segments cost on a device: what depends on codebooks and chunks, and what the cost model is made of."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

from experiments.cost_model.point_costs import PointCosts
from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.costs import Costs, Split
from testbed.astra.optimizations import Optimizations
from testbed.comm.codecs import CODECS
from testbed.config.load import load_config
from testbed.config.schema import LatencyConfig
from testbed.device.spec import Device
from testbed.grid import points
from testbed.methods import load_method
from testbed.work import PRODUCT, Work
from tests.methods.small import VIT


def profile() -> tuple[LatencyConfig, Device]:
    config = load_config(["+experiment=bandwidth_sweep"])
    assert isinstance(config, LatencyConfig)
    return config, config.emulated_device()


def costs(groups: int, optimizations: str = "paper") -> Costs:
    chosen = Optimizations.parse(optimizations)
    return Costs(Split(VIT, [256] * 4, 1, chosen.chunks), CodebookSpec(groups, 1024), chosen)


def test_encoding_with_more_codebooks_takes_longer_for_the_same_multiplications() -> None:
    _, device = profile()
    one, sixteen, many = (costs(groups).encode(0) for groups in (1, 16, 32))
    assert one.macs == sixteen.macs == many.macs == 256 * 768 * 1024
    assert one.launches < sixteen.launches < many.launches and one.moved_bytes < many.moved_bytes
    times = [device.seconds(work) for work in (one, sixteen, many)]
    assert times[1] > 1.3 * times[0] and times[2] > 1.15 * times[1]


def test_split_chunks_cost_more_than_whole_ones() -> None:
    _, device = profile()
    whole, cut = costs(32, "lut+overlap"), costs(32, "lut+overlap+chunks8")
    rows = [end - first for first, end in cut.split.chunk_rows]
    assert sum(rows) == whole.split.rows and sum(cut.finish(each).macs for each in rows) == whole.finish(257).macs
    together = sum(device.seconds(cut.finish(each)) for each in rows)
    assert together > 1.5 * device.seconds(whole.finish(257))
    without = replace(device, row_efficiency=(), launch_s=0.0, memory_bytes_per_s=float("inf"))
    assert sum(without.seconds(cut.finish(each)) for each in rows) == pytest.approx(without.seconds(whole.finish(257)))


def test_codecs_sums_norms_and_merges_take_time() -> None:
    _, device = profile()
    for name in ("int8", "int4", "topk", "fp16"):
        for passes in (CODECS[name].encoding, CODECS[name].decoding):
            assert device.seconds(passes.work(256 * 768)) > device.launch_s
    plain, int8 = (load_method("sequence", codec=codec).work(VIT, 0, 4) for codec in ("fp32", "int8"))
    assert device.seconds(int8) > device.seconds(plain) and int8.macs == plain.macs
    products = sum(count for kernel, count in load_method("single").work(VIT, 0, 1).kernels if kernel.kind == PRODUCT)
    assert load_method("single").work(VIT, 0, 1).launches > products
    assert device.seconds(costs(1).mix()) > 0 and device.seconds(VIT.norm(256)) > device.launch_s
    tensor = load_method("tensor").work(VIT, 0, 4)
    only_products = Work(tuple(entry for entry in tensor.kernels if entry[0].kind == PRODUCT))
    assert device.seconds(tensor) > 1.02 * device.seconds(only_products)


def test_nothing_measured_enters_the_cost_model() -> None:
    config, device = profile()
    assert list(inspect.signature(PointCosts.packet_wire).parameters) == ["self"]
    for point in points(config):
        wire = PointCosts(point, config).packet_wire()
        assert (wire.exchange_s, wire.staging_bytes_per_s) == (device.exchange_s, device.staging_bytes_per_s)
