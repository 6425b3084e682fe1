"""The first process in the sandbox's namespaces. It prepares them, starts the run, forwards signals and reaps orphans.

It is a separate process, because the init of a process namespace must reap every orphan. In the run's own process,
that would take the exit codes from code that uses ``subprocess``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from testbed.network.sandbox import SIGNALS, scratch

PREPARE = """
mount -t tmpfs -o mode=1777,size=75% tmpfs /dev/shm
mount -t sysfs sysfs /sys
ip link set lo up
sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
"""
# Bridged packets must not pass through the machine's packet filter. The files exist only if br_netfilter is loaded.
UNFILTERED = "/proc/sys/net/bridge/bridge-nf-call-"


def main(command: list[str]) -> int:
    """Run ``command`` in the sandbox and return its exit code."""
    import signal

    subprocess.run(["sh", "-ec", PREPARE], check=True)
    for table in ("iptables", "ip6tables", "arptables"):
        if os.path.exists(UNFILTERED + table):
            Path(UNFILTERED + table).write_text("0")
    scratch().mkdir(parents=True)
    os.environ["TMPDIR"] = str(scratch())
    child = subprocess.Popen(command)
    for number in SIGNALS:
        signal.signal(number, lambda received, _frame: os.kill(child.pid, received))
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
