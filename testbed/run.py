"""``python -m testbed.run +experiment=NAME KEY=VALUE ...``: check everything, then measure in the backend's sandbox.

The same command runs twice. First as the supervisor, which validates, announces what will be emulated and, when a
signal ended the run, says where the finished points are; then, started by it, inside the sandbox, where it measures.
"""

from __future__ import annotations

import importlib
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from testbed.errors import ConfigError, EnvironmentFault, TestbedError
from testbed.results.schema import ANALYTIC

if TYPE_CHECKING:
    from testbed.config.load import Config
    from testbed.results.run_folder import RunFolder

# Flags that only show something; Hydra answers them.
INFORMING = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")
DETAILS = ("-p", "--package", "--resolve")  # of what --cfg shows
SWEEPS = ("-m", "--multirun")
OK, FAILED, BAD_INPUT = 0, 1, 2
SIGNALLED = 128  # exit codes above: ended by signal code - 128, as in shells

MEANING = {
    "mininet": "Mininet hosts on this machine, the kernel's network stack, links shaped by the kernel",
    "loopback": "processes on this machine, links paced in the transport, no kernel network stack shaped",
    ANALYTIC: "the cost model: slots of computation, bits over bandwidth; nothing is run, sent or measured",
}


def main(argv: list[str] | None = None) -> int:
    """The command line (default: sys.argv). Returns the exit code: 0 all points ok, 1 some failed, 2 bad input."""
    words = sys.argv[1:] if argv is None else argv
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        _refuse_flags(words)
        if any(word.partition("=")[0] in INFORMING for word in words):
            return _inform()
        return _run(words)
    except (ConfigError, EnvironmentFault) as error:
        return _fail(error, BAD_INPUT)
    except TestbedError as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        return SIGNALLED + signal.SIGINT
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse_flags(words: list[str]) -> None:
    """ConfigError for flags that do more than show something. Hydra has one that unpickles a file."""
    for flag in (word.partition("=")[0] for word in words if word.startswith("-")):
        if flag in SWEEPS:
            allowed = "points are measured one after another on this machine; write lists instead, as devices=[2,4]"
            raise ConfigError("flag", flag, allowed)
        if flag not in (*INFORMING, *DETAILS):
            raise ConfigError("flag", flag, f"must be KEY=VALUE, or one of {' '.join(INFORMING)}")


def _run(words: list[str]) -> int:
    # Only now: what a mistyped flag or --help does not need.
    from testbed.config.load import load_config
    from testbed.network.sandbox import inside

    config = load_config(words)
    if inside():
        return _measure(config, _folder(config))
    folder = _prepare(config)
    needs_sandbox = config.emulates and config.network.backend != ANALYTIC
    return _supervise(config, words, folder) if needs_sandbox else _alone(config, folder)


def _prepare(config: Config) -> RunFolder:
    """The folder to write to, with what the user wants done about earlier results in it."""
    requested = config.network.backend
    folder = results_folder(config)
    if not config.resume:
        with folder.exclusive():
            aside = folder.set_aside()
        if aside:
            print(f"earlier results set aside in {aside}")
    elif not config.force:
        _refuse_other_code(folder)
    if config.emulates:
        _announce(requested, config.network.backend)
    sys.stdout.flush()
    return folder


def _supervise(config: Config, words: list[str], folder: RunFolder) -> int:
    """Outside the sandbox."""
    from testbed.network.sandbox import supervise

    backend = config.network.backend
    with folder.exclusive():
        code = supervise([*words, f"network.backend={backend}"], backend)
    return _say_ended(code, folder)


def _alone(config: Config, folder: RunFolder) -> int:
    """What emulates nothing needs no sandbox."""
    with folder.exclusive():
        try:
            return _measure(config, folder)
        except KeyboardInterrupt:
            return _say_ended(SIGNALLED + signal.SIGINT, folder)
        except SystemExit as ending:  # from ``_terminate``
            return _say_ended(int(ending.code or 0), folder)


def _say_ended(code: int, folder: RunFolder) -> int:
    """If a signal ended the run, tell where its points are."""
    if code > SIGNALLED:
        kept = f"finished points lie in {folder.path}" if folder.parquet.exists() else "no point was finished"
        print(f"ended by signal {code - SIGNALLED}; {kept}; resume=true goes on from there", file=sys.stderr)
    return code


def results_folder(config: Config) -> RunFolder:
    """Where a run of this configuration on this machine writes.

    The backend that is found becomes part of the configuration and so of the signature. Raises ConfigError,
    EnvironmentFault.
    """
    from testbed.config.cross_checks import check_links
    from testbed.network.probe import choose_backend

    if config.emulates:
        config.network.backend = choose_backend(config.network.backend)
        check_links(config)  # again, as a backend that was found may not have these links
    return _folder(config)


def _folder(config: Config) -> RunFolder:
    from testbed.grid import config_signature
    from testbed.results.run_folder import RunFolder

    return RunFolder(config.results_dir, config.experiment, config_signature(config), config.rows)


def _refuse_other_code(folder: RunFolder) -> None:
    """ConfigError if rows are there that other code measured: one table must not mix them unnoticed."""
    from testbed.results.provenance import code_hash

    if not folder.parquet.exists():
        return
    before = {run.get("code_hash", "unknown") for run in folder.runs()} or {"unknown"}
    if before != {now := code_hash()}:
        allowed = (
            f"{folder.path} was measured with other code ({', '.join(sorted(before))}, now {now}); "
            "resume=false measures afresh and keeps it under another name, force=true goes on regardless"
        )
        raise ConfigError("resume", "true", allowed)


def _announce(requested: str, backend: str) -> None:
    """Say what emulates the network, and loudly if it is not what a user would expect."""
    from testbed.network.probe import choose_backend

    print(f"network: {backend} ({MEANING.get(backend, 'see conf/network/')})")
    if requested == "auto" and backend == "loopback":
        try:
            choose_backend("mininet")
        except EnvironmentFault as reason:
            print(
                f"WARNING: Mininet cannot run here: {reason}\n"
                "WARNING: falling back to loopback. Latencies then show the emulator's pacing, not a network stack\n"
                "WARNING: under load; rows, tables and plots say loopback. network=loopback silences this warning.",
                file=sys.stderr,
            )


def _measure(config: Config, folder: RunFolder) -> int:
    """Inside the sandbox."""
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
    """Let Hydra answer --help, --cfg, --info and shell completion. It reads sys.argv and never runs the task."""
    import hydra

    from testbed.config.load import CONF, register_methods

    register_methods()
    hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(lambda config: None)()
    return OK


def _fail(error: TestbedError, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _terminate(number: int, _frame: object) -> NoReturn:
    """SIGTERM as an exception, so that every ``finally`` on the way out is run."""
    raise SystemExit(SIGNALLED + number)


if __name__ == "__main__":
    sys.exit(main())
