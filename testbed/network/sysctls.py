"""Settings of the kernel in a network namespace: written, then read back, because a write may be refused or ignored."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

MISSING = "missing"  # the value of a setting that this kernel does not have

# For each pair of arguments: write the value, then print a line with what the file holds. The shell's own ``read``
# reads single bytes, for which the kernel returns nothing from some of these files.
SCRIPT = f"""
while [ $# -gt 1 ]; do
    [ -e "$1" ] && {{ echo "$2" >"$1"; }} 2>/dev/null
    value=$(cat "$1" 2>/dev/null) && echo "$value" || echo {MISSING}
    shift 2
done
"""


def file_of(name: str) -> str:
    """The file of a setting, as /proc/sys/net/ipv4/ip_forward of ``net.ipv4.ip_forward``."""
    return f"/proc/sys/{name.replace('.', '/')}"


def apply(settings: Mapping[str, str], entering: Sequence[str] = ()) -> dict[str, str]:
    """Write settings, and return for each the value that is then in force, or MISSING.

    settings: name, as ``net.ipv4.ip_forward`` -> value. entering: words before a command that enter a namespace.
    """
    words = [word for name, value in settings.items() for word in (file_of(name), value)]
    done = subprocess.run(
        [*entering, "sh", "-c", SCRIPT, "sysctls", *words], capture_output=True, text=True, check=False
    )
    found = done.stdout.split("\n")[: len(settings)]
    return dict(zip(settings, found, strict=True)) if len(found) == len(settings) else dict.fromkeys(settings, MISSING)
