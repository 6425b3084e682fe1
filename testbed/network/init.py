"""The first process in the sandbox's namespaces. It prepares them, starts the run, forwards signals and reaps orphans.

It is a separate process, because the init of a process namespace must reap every orphan. In the run's own process,
that would take the exit codes from code that uses ``subprocess``.
"""

from __future__ import annotations

import os
import subprocess
import sys

from testbed.network import sysctls
from testbed.network.sandbox import SIGNALS, scratch

NOT_PREPARED = 2  # exit code; as for a machine that lacks something
PREPARE = {
    "a private /dev/shm": ["mount", "-t", "tmpfs", "-o", "mode=1777,size=75%", "tmpfs", "/dev/shm"],
    "the loopback interface": ["ip", "link", "set", "lo", "up"],
}
# Bridges send router solicitations over IPv6. A kernel without IPv6 needs no setting.
WITHOUT_IPV6 = dict.fromkeys(("net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6"), "1")
# Bridged packets must not pass through the machine's packet filter. The settings exist only with br_netfilter.
UNFILTERED = {f"net.bridge.bridge-nf-call-{table}": "0" for table in ("iptables", "ip6tables", "arptables")}


def main(command: list[str]) -> int:
    """Run ``command`` in the sandbox and return its exit code; NOT_PREPARED after a line if a step fails."""
    import signal

    for what, words in PREPARE.items():
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"error: sandbox: {what}: {' '.join(done.stderr.split())}", file=sys.stderr)
            return NOT_PREPARED
    wanted = WITHOUT_IPV6 | UNFILTERED
    for name, value in sysctls.apply(wanted).items():
        if value not in (wanted[name], sysctls.MISSING):
            print(f"error: sandbox: the setting {name} stays {value}; {wanted[name]} is needed", file=sys.stderr)
            return NOT_PREPARED
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
