from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from testbed import limits, run
from testbed.config.fields import choices
from testbed.config.load import load_config
from testbed.errors import CommError, EnvironmentFault
from testbed.grid import config_signature
from testbed.network import probe, sandbox
from testbed.network.probe import Trial
from testbed.results.measurement_hash import measurement_hash
from testbed.results.provenance import provenance
from testbed.results.run_folder import RunFolder
from tests.results.test_run_folder import row

ROOT = Path(__file__).parents[1]
SMOKE = "+experiment=smoke"


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "testbed.run", *words], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bandwidths=-1"], "error: bandwidths=-1: must be"),
        (["model=vit_bse"], "error: model=vit_bse: unknown; did you mean vit_base"),
        (["results_dir=/dev/null/x", "network=loopback"], "error: results_dir=/dev/null/x: must be"),
    ],
)
def test_bad_input_ends_the_command_with_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    done = command(SMOKE, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert done.stdout == "" and not list(tmp_path.iterdir())


def test_a_quota_below_one_core_ends_a_run_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "_quotas", lambda: iter([4.0, 0.5]))
    assert run.main([SMOKE, f"results_dir={tmp_path}", "network=loopback"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: CPU quota=0.5 cores: emulation needs at least 1") and said.err.count("\n") == 1
    assert said.out == "" and not list(tmp_path.iterdir())
    assert run.main([SMOKE, f"results_dir={tmp_path}", "network=analytic", "methods=single"]) == 0  # runs nothing


@pytest.mark.parametrize("words", [["--help"], [SMOKE, "network=analytic", "results_dir=é日", "methods=single"]])
def test_an_output_that_lacks_letters_replaces_them(words: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "testbed.run", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.isascii()


def test_cheap_checks_come_before_heavy_imports(tmp_path: Path) -> None:
    script = (
        "import sys; from testbed.run import main; code = main(['+experiment=smoke', 'bandwidths=0']);"
        "print(code, sorted({'torch', 'ray', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "2 []\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: +experiment=: is needed"),
        (["-m", SMOKE], "error: flag=-m: points are measured one after another"),
        (["--fast", SMOKE], "error: flag=--fast: must be KEY=VALUE without dashes"),
        (["--devices=2", SMOKE], "error: flag=--devices: must be KEY=VALUE without dashes"),
        (["-m", SMOKE, "devices=1,2"], "error: flag=-m: points are measured one after another"),
        (["smoke"], "error: override=smoke: cannot be read; it must be KEY=VALUE; did you mean +experiment=smoke?"),
        (["+experiment=Smoke"], "error: experiment=Smoke: unknown; did you mean smoke?"),
        (["--help", "--experimental-rerun", "x.pickle"], "error: flag=--experimental-rerun: must be"),
        (["--help", "--experimental-rerun=x.pickle"], "error: flag=--experimental-rerun: must be"),
        (["--help", "--exp=x.pickle"], "error: flag=--exp: must be"),  # argparse would complete it
        ([SMOKE, "devices=5"], "error: devices=5: pipeline"),
        ([SMOKE, "astra.codebook_size=1000"], "error: astra.codebook_size=1000: "),
    ],
)
def test_bad_input_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message) and captured.err.count("\n") == 1 and captured.out == ""


def test_hydra_answers_questions_and_leaves_no_files(tmp_path: Path) -> None:
    shown = command("--cfg", "job", SMOKE, cwd=tmp_path)
    assert shown.returncode == 0 and "experiment: smoke" in shown.stdout and "codebook_size: 1024" in shown.stdout
    part = command("--cfg", "job", "--package", "model", SMOKE, cwd=tmp_path)
    assert part.returncode == 0 and "hidden: 768" in part.stdout and "codebook_size" not in part.stdout
    odd = command("--cfg", "job", "experiment=smoke", "results_dir=a=b ~", cwd=tmp_path)
    assert odd.returncode == 0 and "results_dir: a=b ~" in odd.stdout
    wrong = command("--cfg", "job", "+experiment=Smoke", cwd=tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "did you mean smoke?" in wrong.stderr
    helped = command("--help", cwd=tmp_path)
    assert helped.returncode == 0
    for folder in {name.rpartition("/")[0] for name in choices("experiment")}:
        names = [name.rpartition("/")[2] for name in choices("experiment") if name.rpartition("/")[0] == folder]
        assert f"{'/'.join(filter(None, ['experiment', folder]))}: {', '.join(names)}" in helped.stdout
    assert not list(tmp_path.iterdir())


def complete(line: str, cwd: Path) -> list[str]:
    """What the shell would propose for a line; Hydra's completion asks by these variables."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMP_LINE": line, "COMP_POINT": str(len(line))}
    words = [sys.executable, "-m", "testbed.run", "-sc", "query=bash"]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True).stdout.split()


def test_the_shell_completes_experiments_choices_and_keys(tmp_path: Path) -> None:
    assert "+experiment=bandwidth_sweep" in complete("testbed +experiment=band", tmp_path)
    assert complete("testbed +experiment=smoke topology=st", tmp_path) == ["topology=star"]
    assert "astra.codebook_size=" in complete("testbed +experiment=smoke astra.code", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_console_script_is_the_command() -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="testbed")
    assert script.value == "testbed.run:main"


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, list[str]]]:
    """Runs main as the supervisor, on loopback, with a sandbox that only returns an exit code."""

    def go(*words: str, code: int = 0) -> tuple[int, list[str]]:
        calls: list[str] = []

        def supervise(argv: list[str], backend: str) -> int:
            calls.extend([*argv, backend])
            return code

        monkeypatch.setattr(sandbox, "inside", lambda: False)
        monkeypatch.setattr(sandbox, "supervise", supervise)
        return run.main([SMOKE, f"results_dir={tmp_path}", *words]), calls

    return go


def folder_of(tmp_path: Path, *words: str) -> RunFolder:
    config = load_config([SMOKE, f"results_dir={tmp_path}", *words])
    return RunFolder(tmp_path, "smoke", config_signature(config))


def current(*words: str) -> str:
    return measurement_hash(dataclasses.asdict(load_config([SMOKE, *words])))


def test_the_sandbox_gets_the_backend_that_was_found(
    supervised: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(probe, "try_mininet", lambda graph: Trial("hosts and links: not permitted"))
    code, words = supervised("seed=3")
    assert code == 0 and words[-2:] == ["network.backend=loopback", "loopback"]
    captured = capsys.readouterr()
    assert captured.out.startswith("network: loopback") and "hosts and links: not permitted" in captured.err
    # What was measured on another backend is never mixed in: the signature has the one that was found.
    (folder,) = (tmp_path / "smoke").iterdir()
    assert folder.name == folder_of(tmp_path, "seed=3", "network=loopback").signature


def test_mininet_asked_for_and_impossible_is_bad_input(
    supervised: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "try_mininet", lambda graph: Trial("tc not found (on Debian: apt-get install iproute2)"))
    assert supervised("network=mininet") == (2, [])
    error = capsys.readouterr().err
    assert "network=mininet" in error and "iproute2" in error and error.count("\n") == 1


def test_after_a_signal_the_user_learns_where_the_points_are(
    supervised: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert supervised("network=loopback", code=143)[0] == 143
    assert "no point was finished" in capsys.readouterr().err
    folder = folder_of(tmp_path, "network=loopback")
    folder.append([row()])
    folder.write_manifest([{"measurement_hash": current("network=loopback")}])
    assert supervised("network=loopback", code=130)[0] == 130
    assert f"finished points are in {folder.path}" in capsys.readouterr().err


def test_without_resume_earlier_results_are_set_aside(supervised: Any, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "network=loopback")
    folder.append([row()])
    folder.write_manifest([{"measurement_hash": current("network=loopback")}])
    assert supervised("network=loopback")[0] == 0 and len(folder.rows()) == 1
    assert supervised("network=loopback", "resume=false")[0] == 0 and folder.rows().empty
    assert len(list((tmp_path / "smoke").iterdir())) == 2


@pytest.mark.parametrize("runs", [[], [{"measurement_hash": "0123456789"}], [{}]])
def test_rows_of_other_code_are_not_mixed_in_unless_forced(
    supervised: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, runs: list[dict[str, str]]
) -> None:
    folder = folder_of(tmp_path, "network=loopback")
    folder.append([row()])
    folder.write_manifest(runs)
    assert supervised("network=loopback") == (2, [])
    error = capsys.readouterr().err
    assert (
        error.startswith("error: resume=true (conf/config.yaml): ") and "other code" in error and error.count("\n") == 1
    )
    assert supervised("network=loopback", "force=true")[0] == 0
    assert len(folder.rows()) == 1


def test_rows_of_other_packages_are_not_mixed_in_unless_forced(
    supervised: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, "network=loopback")
    folder.append([row()])
    entry = {"measurement_hash": current("network=loopback"), **provenance()}
    older = entry | {"packages": entry["packages"] | {"torch": "2.1.0", "pandas": "1.0"}, "python": "3.9.1"}
    folder.write_manifest([entry])
    assert supervised("network=loopback")[0] == 0
    folder.write_manifest([entry, older])
    assert supervised("network=loopback") == (2, [])
    error = capsys.readouterr().err
    assert f"torch 2.1.0, now {metadata.version('torch')}; Python 3.9, now " in error and error.count("\n") == 1
    assert "pandas" not in error and "force=true continues anyway" in error
    assert supervised("network=loopback", "force=true")[0] == 0
    assert len(folder.rows()) == 1


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Callable[[RunFolder], int]], int]:
    """Runs main inside the sandbox with a stand-in for the experiment."""

    def go(experiment: Callable[[RunFolder], int]) -> int:
        runner, summary = ModuleType("experiments.latency"), ModuleType("analysis.report.terminal")
        runner.run = lambda config, backend, folder: experiment(folder)  # type: ignore[attr-defined]
        summary.summarize = lambda path: print(f"summary of {path}")  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "experiments.latency", runner)
        monkeypatch.setitem(sys.modules, "analysis.report.terminal", summary)
        monkeypatch.setattr(sandbox, "inside", lambda: True)
        return run.main([SMOKE, f"results_dir={tmp_path}", "network.backend=loopback"])

    return go


def test_an_experiment_ends_with_its_summary(measured: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def experiment(folder: RunFolder) -> int:
        folder.append([row()])
        return 0

    assert measured(experiment) == 0
    assert "summary of" in capsys.readouterr().out
    assert (tmp_path / "latest" / "results.csv").exists()


def fail(error: BaseException) -> Callable[[RunFolder], int]:
    def experiment(folder: RunFolder) -> int:
        raise error

    return experiment


def test_exit_codes(measured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert measured(lambda folder: 3) == 1
    assert measured(fail(CommError("rank 2 is missing\nafter 5 s"))) == 1
    assert capsys.readouterr().err == "error: rank 2 is missing after 5 s\n"
    assert measured(fail(EnvironmentFault("tc is missing"))) == 2
    assert measured(fail(KeyboardInterrupt())) == 130


def test_sigterm_unwinds_the_experiment(measured: Any) -> None:
    unwound = []

    def experiment(folder: RunFolder) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            unwound.append(True)
        return 0

    with pytest.raises(SystemExit) as ending:
        measured(experiment)
    assert ending.value.code == 143 and unwound
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
