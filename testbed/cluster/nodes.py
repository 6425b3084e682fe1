"""A Ray node on every device and an actor pinned to each node.

The driver and Ray's head node run on the control host, which is not part of the data network.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from testbed.cluster.answers import Answers
from testbed.cluster.worker import DeviceWorker
from testbed.errors import ClusterError
from testbed.limits import usable_cores
from testbed.network.backend import Network
from testbed.network.sandbox import adopt_orphans, descendants, end_descendants, scratch

PORT = 6379
OBJECT_STORE_BYTES = 100_000_000
START_TIMEOUT_S = 60.0
WATCH_S = 1.0  # between two checks of Ray's processes while a call waits


@functools.cache
def ray_token() -> str:
    """The token by which this run's Ray processes recognize each other.

    All clusters of a run share it, because Ray reads it only once in a process.
    """
    return secrets.token_hex(32)


@functools.cache
def users_ray_variables() -> frozenset[str]:
    """Variables of Ray that were set before this run set its own."""
    return frozenset(name for name in os.environ if name.startswith("RAY_"))


def ray_environment(threads: int, loopback: bool) -> dict[str, str]:
    """The environment of every Ray process of a run. Without this token, Ray would store one in the home folder.

    The user's own variables of Ray, as RAY_ADDRESS, belong to another cluster and are left out.
    """
    return {
        **{name: value for name, value in os.environ.items() if name not in users_ray_variables()},
        "RAY_TMPDIR": str(scratch()),
        "RAY_memory_monitor_refresh_ms": "0",  # it would kill actors when other programs use memory
        "RAY_worker_niceness": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": ray_token(),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0" if loopback else "1",  # 0: Ray listens on 127.0.0.1 only
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Hold SIGTERM and SIGINT back until the block ends, then deliver the first one that came."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, _frame: received.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            os.kill(os.getpid(), received[0])


class Cluster:
    """One actor per device of a network. A context manager: leaving it ends Ray and all of its processes.

    grace_s: seconds that the other ranks have left to answer after one has failed.
    """

    def __init__(self, network: Network, devices: int, grace_s: float):
        self.network, self.devices, self.grace_s = network, devices, grace_s
        self.threads = max(1, usable_cores() // devices)
        self._nodes: list[tuple[str, int | None, psutil.Process]] = []  # name, rank, process
        # Ray is started from a thread of its own, for two reasons. Only in the main thread does Ray replace our handler
        # of SIGTERM by one that ends the process without cleaning up. And an exception from a signal handler, which
        # runs in the main thread, cannot be lost inside ``ray.init``. The thread lives as long as the cluster: the
        # kernel kills Ray's processes when the thread that started them ends (PR_SET_PDEATHSIG).
        self._ray_thread = ThreadPoolExecutor(1, thread_name_prefix="ray-init")

    def __enter__(self) -> Cluster:
        loopback = self.network.name == "loopback"
        self._environment = ray_environment(self.threads, loopback)
        for name in users_ray_variables():
            os.environ.pop(name, None)
        os.environ.update(self._environment)  # before the first import of Ray, which reads them
        adopt_orphans()  # Ray's daemons detach themselves
        self._before = descendants()
        with contextlib.ExitStack() as failed:
            failed.callback(self.__exit__)
            self._start(loopback)
            failed.pop_all()
        return self

    def _start(self, loopback: bool) -> None:
        import ray

        if not loopback:
            self._start_nodes()
        with _signals_deferred():
            self._ray_thread.submit(self._connect, loopback).result()
        self._nodes = [*self._find_nodes(loopback)]
        actor = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(DeviceWorker)
        self.workers = [
            actor.options(resources={f"device_{rank}": 1}).remote(rank, self.devices, self.threads)
            for rank in range(self.devices)
        ]
        found = self.call("node_ip", timeout_s=START_TIMEOUT_S, phase="start")
        if found != self.network.device_control_ips:
            raise ClusterError(f"actors run on {found}, not on their devices {self.network.device_control_ips}")

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()
        end_descendants(keep=self._before)
        self._ray_thread.shutdown()
        for session in scratch().glob("ray*/session_*"):  # logs and sockets of the head and of each host
            if not session.is_symlink():
                shutil.rmtree(session, ignore_errors=True)

    def _connect(self, loopback: bool) -> None:
        """Make this process Ray's driver. On loopback, this also starts the only node."""
        import ray

        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if not loopback:
            ip = self.network.control_ip
            ray.init(address=f"{ip}:{PORT}", _node_ip_address=ip, **quiet)
            return
        ray.init(
            num_cpus=self.devices,
            resources={f"device_{rank}": 1 for rank in range(self.devices)},
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            **quiet,
        )

    def _start_nodes(self) -> None:
        """Start the head on the control host, then the nodes of all devices in parallel."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats", "--log-color=false"]
        # Nobody reads remote logs or requests more nodes. Processes for that would compete with the devices for cores.
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--include-log-monitor=false"]
        head = [*command, "--head", f"--port={PORT}", f"--node-ip-address={self.network.control_ip}"]
        head += ["--num-cpus=0", "--include-dashboard=false", "--no-monitor"]
        log = scratch() / "ray-head.log"
        with log.open("wb") as output:
            started = subprocess.run(head, env=self._environment, stdout=output, stderr=subprocess.STDOUT, check=False)
        if started.returncode:
            raise ClusterError(f"the Ray head did not start: {log.read_text()[-400:]!r}")
        logs = [scratch() / f"ray-node-{rank}.log" for rank in range(self.devices)]
        starting = []
        for rank, ip in enumerate(self.network.device_control_ips):
            node = [*command, f"--address={self.network.control_ip}:{PORT}", f"--node-ip-address={ip}"]
            node += ["--num-cpus=1", f"--resources={json.dumps({f'device_{rank}': 1})}"]
            starting.append(self.network.popen(rank, node, logs[rank], self._environment))
        for rank, process in enumerate(starting):
            if process.wait(START_TIMEOUT_S):
                raise ClusterError(f"the Ray node of device {rank} did not start: {logs[rank].read_text()[-400:]!r}")

    def _find_nodes(self, loopback: bool) -> Iterator[tuple[str, int | None, psutil.Process]]:
        """(name, rank, process) of Ray's processes that must live as long as the cluster."""
        for process in descendants() - self._before:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "gcs_server":
                    yield "head", None, process
                elif process.name() == "raylet":
                    command, addresses = " ".join(process.cmdline()), self.network.device_control_ips
                    ranks = [rank for rank, ip in enumerate(addresses) if f"node_ip_address={ip} " in command]
                    if loopback or not ranks:
                        yield "head's node", None, process
                    else:
                        yield f"node of rank {ranks[0]}", ranks[0], process

    def call(self, name: str, *args: Any, timeout_s: float, phase: str) -> list[Any]:
        """Call a method on all actors and return the results by rank. Raises what ``call_each`` raises."""
        return self.call_each(name, [args] * self.devices, timeout_s=timeout_s, phase=phase)

    def call_each(self, name: str, args: list[tuple[Any, ...]], *, timeout_s: float, phase: str) -> list[Any]:
        """``call`` with separate arguments for each rank.

        Raises CommError if a collective failed and all ranks still answer, else ClusterError. Both name the phase and
        the ranks at fault. The call ends after ``timeout_s`` at the latest. Once a rank has failed, the others have
        ``grace_s`` left.
        """
        import ray

        refs = [getattr(worker, name).remote(*each) for worker, each in zip(self.workers, args, strict=True)]
        answers = Answers(phase, self.devices)
        now = time.monotonic()
        deadline = now + timeout_s
        while now < deadline and len(answers.seen) < self.devices:
            waiting = [ref for rank, ref in enumerate(refs) if rank not in answers.seen]
            done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=min(WATCH_S, deadline - now))
            now = time.monotonic()
            failed_before = answers.failed
            for ref in done:
                answers.take(refs.index(ref), ref)
            if answers.failed and not failed_before:
                deadline = min(deadline, now + self.grace_s)
            self._check_nodes(phase)
        return answers.results(timeout_s)

    def _check_nodes(self, phase: str) -> None:
        """ClusterError if a process of Ray has died. Ray itself needs up to a minute to notice that."""
        for name, rank, process in self._nodes:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise ClusterError(f"{phase}: the Ray {name} died", [] if rank is None else [rank])
