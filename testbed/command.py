"""How a command prints and ends: an error for users is one line and an exit code."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable

from testbed.errors import TestbedError, printable, reason

TORCH_LACKS_MEMORY = "can't allocate memory"  # in the RuntimeError of its allocator
SMALLER = "use a smaller model, fewer tokens, shorter windows or smaller batches"
BAD_INPUT, INTERRUPTED, CLOSED = 2, 130, 141  # the last two as in shells: 128 + SIGINT, 128 + SIGPIPE


def run_command(name: str, work: Callable[[], int]) -> int:
    """Run ``work`` and return its exit code. After an error: a line ``name: error`` on stderr, and BAD_INPUT.

    Errors of the operating system that nothing else has named are such errors too, and so is a lack of memory. A reader
    that closes the output, as ``head`` does, ends the command without a word.
    """
    print_anything()
    try:
        code = work()
        sys.stdout.flush()
        return code
    except TestbedError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit finds no closed pipe
        return CLOSED
    except OSError as error:
        print(f"{name}: {os_error(error)}", file=sys.stderr)
        return BAD_INPUT
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and TORCH_LACKS_MEMORY not in str(error):
            raise
        size = re.search(r"(\d+) bytes", str(error))
        asked = f"{int(size[1]) / 1e9:.1f} GB at once were asked for" if size else "not enough is left"
        print(f"{name}: memory: {asked}; {SMALLER}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def os_error(error: OSError) -> str:
    """An error of the operating system on one line: ``/x/y: No space left on device``."""
    files = ", ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return printable(": ".join(filter(None, [files, reason(error)])))


def print_anything() -> None:
    """Let stdout replace letters that its encoding lacks, as ASCII lacks a multiplication sign. stderr always does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
