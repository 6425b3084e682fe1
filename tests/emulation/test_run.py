"""The whole instrument on real Mininet hosts: methods equal their references, no ending leaves anything behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from testbed.astra.quantized import quantized_width
from testbed.astra.training.checkpoints import save_result
from testbed.astra.training.decoder import AstraDecoder
from testbed.astra.training.ema_quantizer import VectorQuantizer, VqSettings
from testbed.astra.training.vit import AstraVit
from testbed.models.hub import load_hub
from testbed.models.llama import Llama
from testbed.models.vit import VisionTransformer, VitConfig
from tests.emulation.machine import ROOT, command, machine_state, pytestmark
from tests.tiny_llama import LLAMA, save_tiny_llama

__all__ = ["pytestmark"]


def test_every_method_across_mininet_links(tmp_path: Path) -> None:
    words = ["devices=[1,2,3,4]", "bandwidths=100", "repeats=2", "network=mininet", "compute_mode=replay"]
    done = subprocess.run(command(tmp_path, *words), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = pd.read_csv(tmp_path / "latest" / "results.csv")
    assert set(rows.devices) == {1, 2, 3, 4}
    assert set(rows.method) == {"single", "tensor", "sequence", "pipeline", "astra"}
    assert (rows.status == "ok").all() and rows.verified.all()
    assert (rows.max_abs_err <= 1e-4).all()
    assert (rows.payload_bytes == rows.formula_bytes).all()
    moved = rows[rows.payload_bytes > 0]
    assert (moved.wire_bytes > moved.payload_bytes).all()  # the kernel's counters saw the bytes go over the links
    manifest = json.loads((tmp_path / "latest" / "manifest.json").read_text())
    assert [cluster["idle_bytes"] for cluster in manifest["runs"][-1]["clusters"]] == [0, 0, 0, 0]


def test_a_trained_model_across_mininet_links(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = VisionTransformer(VitConfig(layers=2, hidden=96, heads=4, patch=4, tokens=49, classes=10))
    student = AstraVit(model, VectorQuantizer(torch.randn(2, 2, 64, 48)))
    save_result(tmp_path / "astra.safetensors", student)
    words = [
        "model=vit_tiny",
        "model.layers=2",
        "model.heads=4",
        "tokens=49",
        f"checkpoint={tmp_path / 'astra.safetensors'}",
    ]
    words += ["methods=[single,astra]", "astra.groups=2", "astra.codebook_size=64", "devices=[2,4]", "network=mininet"]
    done = subprocess.run(command(tmp_path, *words, "repeats=1"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = pd.read_csv(tmp_path / "latest" / "results.csv")
    assert set(rows.optimizations.dropna()) == {"paper", "auto"} and set(rows.devices) == {1, 2, 4}
    assert (rows.status == "ok").all() and rows.verified.all()  # outputs equal the simulation's


def test_a_trained_decoder_across_mininet_links(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "tiny-llama")
    model = load_hub(folder)
    assert isinstance(model, Llama)
    width = quantized_width(model.config.shape(32), "keys_values")
    generator = torch.Generator().manual_seed(3)
    books = 0.3 * torch.randn(LLAMA.layers, 2 * 4, 32, width // 4, generator=generator)
    turn = torch.linalg.qr(torch.randn(LLAMA.layers, width, width, generator=generator)).Q.contiguous()
    quantizer = VectorQuantizer(books, VqSettings(num_quantizers=2), turn)
    save_result(tmp_path / "astra.safetensors", AstraDecoder(model, 32, quantizer, "keys_values", 2))
    words = ["+experiment=decoder_sweep", "model=hub_folder", f"model.folder={folder}", "devices=[1,2,3,4]"]
    words += [f"checkpoint={tmp_path / 'astra.safetensors'}", "tokens=32", "astra.groups=4", "astra.codebook_size=32"]
    words += ["astra.quantized=keys_values", "astra.anchor_tokens=2", "astra.optimizations=[paper,auto]", "repeats=1"]
    words += ["astra.num_quantizers=2", "astra.pre_rotation=pca"]
    words += ["bandwidths=100", "compute_mode=replay", "network=mininet", f"results_dir={tmp_path}"]
    done = subprocess.run([sys.executable, "-m", "testbed.run", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = pd.read_csv(tmp_path / "latest" / "results.csv", keep_default_na=False)
    assert set(rows.devices) == {1, 2, 3, 4} and set(rows.optimizations) == {"", "paper", "auto"}
    assert (rows.status == "ok").all() and (rows.verified.astype(str) == "True").all()  # equal the simulation's
    assert (rows.payload_bytes == rows.formula_bytes).all() and set(rows.model) == {"tiny-llama"}
    assert set(rows.settings[rows.method == "astra"]) == {
        "anchor_tokens=2,num_quantizers=2,pre_rotation=pca,quantized=keys_values"
    }


def test_settings_tokens_and_paces_on_one_cluster(tmp_path: Path) -> None:
    words = ["methods=[single,sequence]", "sequence.gather=[x,kv]", "tokens=[32,64]", "bandwidths=[0.5,100]"]
    words += ["repeats=2", "point_budget_s=0.1", "time_scale=auto", "compute_mode=replay", "network=mininet"]
    done = subprocess.run(command(tmp_path, *words), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = pd.read_csv(tmp_path / "latest" / "results.csv", keep_default_na=False)
    assert (rows.status == "ok").all() and (rows.verified.astype(str) == "True").all()
    assert (rows.payload_bytes == rows.formula_bytes).all()
    keys = rows.groupby(["method", "settings", "tokens", "bandwidth_mbps"])
    assert len(keys) == 12 and set(rows.settings) == {"", "gather=kv"}
    assert keys.time_scale.nunique().eq(1).all()
    slow = rows[(rows.settings == "gather=kv") & (rows.tokens == 64)].set_index("bandwidth_mbps")
    assert slow.time_scale[0.5].max() < 1  # would not fit into its budget in real time
    assert slow.latency_ms[0.5].min() > 5 * slow.latency_ms[100].min()
    manifest = json.loads((tmp_path / "latest" / "manifest.json").read_text())
    (cluster,) = manifest["runs"][-1]["clusters"]
    assert len(cluster["verification"]) == 6  # each variant once for each number of tokens
    assert len(cluster["calibration"][0]["rate_error_pct"]) > 2  # every rate that links really ran at


def test_each_device_of_a_mix_has_its_own_speed(tmp_path: Path) -> None:
    words = [
        "device_mix=gtx1660ti+quarter_gtx1660ti",
        "partition=[equal,speed]",
        "methods=[single,tensor,astra]",
        "devices=2",
    ]
    words += ["astra.groups=1", "astra.optimizations=paper", "compute_mode=replay", "network=mininet", "repeats=2"]
    words += ["tokens=512", "model.hidden=384"]  # so much arithmetic that launches, equal on both devices, are little
    words += ["bandwidths=20000", "time_scale=100"]
    done = subprocess.run(command(tmp_path, *words), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = pd.read_csv(tmp_path / "latest" / "results.csv")
    assert (rows.status == "ok").all() and rows.verified.all()
    assert set(rows.device_profile) == {"gtx1660ti+quarter_gtx1660ti"}
    of_astra = rows[rows.method == "astra"].groupby("partition").full_precision_pct.first()
    assert of_astra["equal"] == 50 and of_astra["speed"] == pytest.approx(68, abs=0.5)
    waiting = rows[rows.method != "single"].groupby(["method", "partition"]).straggler_wait_pct.median()
    for method in ("tensor", "astra"):  # what every device repeats is not shared out: the slower one stays slower
        assert waiting[method, "equal"] > max(25, 1.3 * waiting[method, "speed"])


PHASES = {"bring-up": "cluster of", "measuring": "[1/"}


ENDINGS = [
    *(("mininet", ending, phase) for phase in PHASES for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)),
    # The same supervisor ends both backends; of the one without namespaces, what differs most.
    ("loopback", signal.SIGTERM, "bring-up"),
    ("loopback", signal.SIGKILL, "measuring"),
]


@pytest.mark.parametrize(("backend", "ending", "phase"), ENDINGS)
def test_no_ending_leaves_anything_behind(tmp_path: Path, backend: str, ending: signal.Signals, phase: str) -> None:
    before = machine_state()
    words = [f"network={backend}", "compute_mode=replay", "bandwidths=[1,100]"]
    run = subprocess.Popen(
        command(tmp_path, *words),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Shells start background jobs with SIGINT ignored, and whatever these start inherits it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stdout is not None
    seen = []
    for line in run.stdout:
        seen.append(line)
        if PHASES[phase] in line:
            break
    else:
        pytest.fail("".join(seen))
    time.sleep(1.0 if phase == "bring-up" else 0.0)
    run.send_signal(ending)
    run.stdout.read()
    assert run.wait(30) == (-ending if ending == signal.SIGKILL else 128 + ending)
    deadline = time.monotonic() + 20
    while (left := {kind: machine_state()[kind] - before[kind] for kind in before}) and time.monotonic() < deadline:
        if not any(left.values()):
            break
        time.sleep(0.2)
    assert not any(left.values()), left
    if phase == "measuring":
        assert len(pd.read_csv(next(tmp_path.glob("smoke/*/results.csv")))) > 0
