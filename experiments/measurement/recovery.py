"""A session that recovers from faults: it reconnects broken connections, or replaces a cluster that lost a process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from testbed.config.schema import Config
from testbed.errors import ClusterError, CommError
from testbed.progress import console
from testbed.session import Session, open_session


class RecoveringSession:
    """A context manager whose ``session`` is the current session.

    begin: called with every new session, the first one included, before it is used.
    """

    session: Session

    def __init__(self, config: Config, backend: str, devices: int, begin: Callable[[Session], None]):
        self._config, self._backend, self._devices, self._begin = config, backend, devices, begin

    def __enter__(self) -> RecoveringSession:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.session.__exit__()

    def recover(self, error: ClusterError | CommError) -> None:
        """Prepare for the next point after a fault. Raises a new fault if two new clusters in a row fail to start."""
        try:
            if isinstance(error, CommError):
                self.session.join()
                return
        except (ClusterError, CommError):
            pass  # the ranks cannot reconnect, so a process is lost
        self.session.__exit__()
        self._open()

    def shape(self, bandwidth_mbps: float, shaper: str, queue_kb: float) -> None:
        """``Session.shape``, with one retry on a recovered session."""
        try:
            self.session.shape(bandwidth_mbps, shaper, queue_kb)
        except (ClusterError, CommError) as error:
            self.recover(error)
            self.session.shape(bandwidth_mbps, shaper, queue_kb)

    def _open(self) -> None:
        """Start a new cluster, with one retry."""
        try:
            self._open_once()
        except (ClusterError, CommError) as error:
            console().print(f"cluster of {self._devices} devices: {error}; one retry follows", soft_wrap=True)
            self._open_once()

    def _open_once(self) -> None:
        with contextlib.ExitStack() as stack:
            session = stack.enter_context(open_session(self._config, self._backend, self._devices))
            self._begin(session)
            stack.pop_all()
        self.session = session
