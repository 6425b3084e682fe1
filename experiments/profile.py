"""``make profile ARGS='name=NAME'``: measure this machine and write conf/device/NAME.yaml, which device=NAME then uses.

Keys: name; device=cpu (default) or cuda; force=true replaces a file. Everything is measured with the machine as it is;
the file says what other programs did meanwhile.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from testbed.command import run_command
from testbed.config import fields
from testbed.errors import ConfigError, nearest
from testbed.limits import limit_threads
from testbed.results.atomic_write import replacing

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
READ_AS_OTHERS = ("on", "off", "yes", "no", "y", "n", "true", "false", "null")  # by YAML
ALLOWED_NAME = "must be a name of lower-case letters, digits and _, that YAML reads as a text, as name=my_board"
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Choice:
    """What the command line asks for."""

    name: str
    device: str = "cpu"
    force: bool = False


def read_choice(words: list[str]) -> Choice:
    """The words of the command line. Raises ConfigError for an unknown key and for a value that is not allowed."""
    given = {"name": "", "device": "cpu", "force": "false"}
    for word in words:
        key, equal, value = word.partition("=")
        if not equal or key not in given:
            raise ConfigError(key, value, nearest(key, list(given)))
        given[key] = value
    if not NAME.fullmatch(given["name"]) or given["name"] in READ_AS_OTHERS:
        raise ConfigError("name", given["name"], ALLOWED_NAME)
    for key, allowed in (("device", DEVICES), ("force", ("true", "false"))):
        if given[key] not in allowed:
            raise ConfigError(key, given[key], f"must be one of {', '.join(allowed)}")
    choice = Choice(given["name"], given["device"], given["force"] == "true")
    if choice.name in fields.choices("device") and not choice.force:
        raise ConfigError("name", choice.name, "conf/device/ has this profile already; force=true replaces it")
    return choice


def main(words: list[str] | None = None) -> int:
    """Measure and write the file. Returns the exit code."""
    return run_command("profile", lambda: _profile(read_choice(sys.argv[1:] if words is None else words)))


def _profile(choice: Choice) -> int:
    limit_threads()  # before torch is imported
    from experiments.measurement.own_device import measure, profile_text
    from testbed.progress import counted

    with counted(f"measuring this machine ({choice.device}), about a minute") as report:
        found = measure(choice.name, choice.device, report)
    path = fields.CONF / "device" / f"{choice.name}.yaml"
    with replacing(path) as temporary:
        temporary.write_text(profile_text(found), "utf-8")
    print(profile_text(found), end="")
    print(f"written to conf/device/{path.name}; use it with device={choice.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
