"""What several test modules need: ranks as threads of this process, connected by real TCP on the loopback interface."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from testbed.comm.connect import connect, listen
from testbed.comm.tcp import TcpGroup

T = TypeVar("T")


def run_ranks(
    world: int,
    rank_main: Callable[[TcpGroup], T],
    timeout_s: float = 20.0,
    first: Callable[[list[tuple[str, int]], bytes], None] | None = None,
) -> list[T]:
    """Run ``rank_main(group)`` on each of ``world`` ranks and return the results by rank. The first error is raised.

    ``first(addresses, token)`` is called when the data ports listen and no rank has come yet.
    """
    listeners = [listen("127.0.0.1") for _ in range(world)]
    addresses = [listener.getsockname() for listener in listeners]
    token = os.urandom(16)
    results: list[T | None] = [None] * world
    errors: list[BaseException] = []
    if first is not None:
        first(addresses, token)

    def run(rank: int) -> None:
        try:
            group = connect(rank, addresses, listeners[rank], token, timeout_s)
            try:
                results[rank] = rank_main(group)
            finally:
                group.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results  # type: ignore[return-value]
