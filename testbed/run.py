"""``python -m testbed.run +experiment=NAME KEY=VALUE ...``: check the configuration, then measure in the sandbox.

The command runs twice. The first process is the supervisor: it validates the configuration, announces the network
backend and, after a signal, says where the finished points are. It starts the same command in the sandbox, which
measures.
"""

from __future__ import annotations

import dataclasses
import importlib
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from testbed.command import run_command
from testbed.errors import ConfigError, EnvironmentFault, TestbedError
from testbed.limits import limit_threads, refuse_small_quota
from testbed.results.schema import ANALYTIC

if TYPE_CHECKING:
    from testbed.config.load import Config
    from testbed.results.run_folder import RunFolder
    from topologies.link_graph import LinkGraph

# Flags that only print information. Hydra handles them.
INFORMING = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")
DETAILS = ("-p", "--package", "--resolve")  # options of --cfg
SWEEPS = ("-m", "--multirun")
OK, FAILED = 0, 1
SIGNALLED = 128  # an exit code above means: ended by signal (code - 128), as in shells

MEANING = {
    "mininet": "Mininet hosts on this machine, the kernel's network stack, links shaped by the kernel",
    "loopback": "processes on this machine, links paced in the transport, no kernel network stack shaped",
    ANALYTIC: "the cost model: compute time plus bits over bandwidth; nothing is run, sent or measured",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line (default: sys.argv). Exit code: 0 all points ok, 1 some points failed, 2 bad input."""
    words = sys.argv[1:] if argv is None else argv
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return run_command("error", lambda: _command(words))
    finally:
        signal.signal(signal.SIGTERM, before)


def _command(words: list[str]) -> int:
    try:
        _refuse_flags(words)
        if any(word.partition("=")[0] in INFORMING for word in words):
            return _inform()
        return _run(words)
    except (ConfigError, EnvironmentFault):
        raise  # bad input
    except TestbedError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED


def _refuse_flags(words: list[str]) -> None:
    """ConfigError for flags that do more than print information. One of Hydra's flags unpickles a file."""
    for flag in (word.partition("=")[0] for word in words if word.startswith("-")):
        if flag in SWEEPS:
            allowed = "points are measured one after another on this machine; write lists instead, as 'devices=[2,4]'"
            raise ConfigError("flag", flag, allowed)
        if flag not in (*INFORMING, *DETAILS):
            raise ConfigError("flag", flag, f"must be KEY=VALUE without dashes, or one of {' '.join(INFORMING)}")


def _run(words: list[str]) -> int:
    # Imported here because a mistyped flag or --help does not need these modules.
    from testbed.config.load import as_written, load_config
    from testbed.network.sandbox import inside

    config = load_config(words)
    try:
        if inside():
            return _measure(config, _folder(config))
        folder = _prepare(config)
        needs_sandbox = config.emulates and config.network.backend != ANALYTIC
        return _supervise(config, words, folder) if needs_sandbox else _alone(config, folder)
    except ConfigError as error:
        raise as_written(error, words) from None


def _prepare(config: Config) -> RunFolder:
    """The results folder, after earlier results in it are kept, set aside or refused as the user chose."""
    requested = config.network.backend
    if config.emulates and requested != ANALYTIC:
        refuse_small_quota()
    folder = results_folder(config)
    if not config.resume:
        with folder.exclusive():
            aside = folder.set_aside()
        if aside:
            print(f"earlier results set aside in {aside}")
    elif not config.force:
        _refuse_other_makers(config, folder)
    if config.emulates:
        _announce(requested, config)
    sys.stdout.flush()
    return folder


def _supervise(config: Config, words: list[str], folder: RunFolder) -> int:
    """Run the command in the sandbox, and report a signal that ended it."""
    from testbed.network.sandbox import supervise

    backend = config.network.backend
    with folder.exclusive():
        code = supervise([*words, f"network.backend={backend}"], backend)
    return _say_ended(code, folder)


def _alone(config: Config, folder: RunFolder) -> int:
    """Run without a sandbox, which an experiment without emulation does not need."""
    with folder.exclusive():
        try:
            return _measure(config, folder)
        except KeyboardInterrupt:
            return _say_ended(SIGNALLED + signal.SIGINT, folder)
        except SystemExit as ending:  # from ``_terminate``
            return _say_ended(int(ending.code or 0), folder)


def _say_ended(code: int, folder: RunFolder) -> int:
    """If a signal ended the run, print where its points are."""
    if code > SIGNALLED:
        kept = f"finished points are in {folder.path}" if folder.parquet.exists() else "no point was finished"
        print(f"ended by signal {code - SIGNALLED}; {kept}; resume=true continues from there", file=sys.stderr)
    return code


def results_folder(config: Config) -> RunFolder:
    """The results folder of this configuration on this machine.

    The chosen backend becomes part of the configuration, and so of its signature. Raises ConfigError and
    EnvironmentFault.
    """
    from testbed.config.cross_checks import check_links
    from testbed.network.probe import choose_backend

    if config.emulates:
        config.network.backend = choose_backend(config.network.backend, _graph(config))
        check_links(config)  # once more, because the chosen backend may not support these links
    return _folder(config)


def _graph(config: Config) -> LinkGraph:
    """The links of the run's largest cluster."""
    return config.topology.graph(max(config.devices))


def _folder(config: Config) -> RunFolder:
    from testbed.grid import config_signature
    from testbed.results.run_folder import RunFolder

    return RunFolder(config.results_dir, config.experiment, config_signature(config), config.rows)


def _refuse_other_makers(config: Config, folder: RunFolder) -> None:
    """ConfigError if other code, or other versions of packages, measured rows of this folder.

    One table must not mix them unnoticed.
    """
    from testbed.results.measurement_hash import measurement_hash
    from testbed.results.provenance import other_versions

    if not folder.parquet.exists():
        return
    runs = folder.runs()
    before = {run.get("measurement_hash", "unknown") for run in runs} or {"unknown"}
    now = measurement_hash(dataclasses.asdict(config))
    others = [f"code {', '.join(sorted(before))}, now {now}"] if before != {now} else []
    others += dict.fromkeys(found for run in runs for found in other_versions(run))
    if others:
        allowed = (
            f"{folder.path} was measured with other code or packages ({'; '.join(others)}); "
            "resume=false measures again and keeps the old rows under another name, force=true continues anyway"
        )
        raise ConfigError("resume", "true", allowed)


def _announce(requested: str, config: Config) -> None:
    """Print the network backend, what it lacks here, and a warning if ``auto`` falls back to loopback."""
    from testbed.network.probe import shortcomings, try_mininet

    backend = config.network.backend
    print(f"network: {backend} ({MEANING.get(backend, 'see conf/network/')})")
    warnings = []
    if backend == "mininet":
        warnings = shortcomings(try_mininet(_graph(config)))
    elif requested == "auto" and backend == "loopback":
        warnings = [
            f"Mininet cannot run here: {try_mininet(_graph(config)).reason}",
            "falling back to loopback. Latencies then show the emulator's pacing, not a network stack",
            "under load; rows, tables and plots say loopback. network=loopback silences this warning.",
            "python -m testbed.doctor lists what this machine can do, and what helps.",
        ]
    for warning in warnings:
        print(f"WARNING: {warning}", file=sys.stderr)


def _measure(config: Config, folder: RunFolder) -> int:
    """Run the experiment and print its summary. Called in the sandbox, or without one."""
    limit_threads()
    experiment = importlib.import_module(f"experiments.{config.runner}")
    try:
        failed: int = experiment.run(config, config.network.backend, folder)
    finally:
        if folder.parquet.exists():
            folder.point_to_latest()
    from analysis.report.terminal import summarize

    summarize(folder.path)
    return FAILED if failed else OK


def _inform() -> int:
    """Let Hydra handle --help, --cfg, --info and shell completion. It reads sys.argv and runs no experiment."""
    import hydra

    from testbed.config.compose import register_methods
    from testbed.config.fields import CONF
    from testbed.config.words import hydra_words, read_words

    register_methods()
    settings = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    if settings and not {"-sc", "--shell-completion"} & set(sys.argv):
        others = [word for word in sys.argv[1:] if word not in settings]
        sys.argv[1:] = [*others, *hydra_words(read_words(settings))]
    hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(lambda config: None)()
    return OK


def _terminate(number: int, _frame: object) -> NoReturn:
    """Turn SIGTERM into an exception, so that every ``finally`` block runs."""
    raise SystemExit(SIGNALLED + number)


if __name__ == "__main__":
    sys.exit(main())
