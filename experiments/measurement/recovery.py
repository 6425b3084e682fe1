"""A session that outlasts faults: torn connections are made anew; if an actor or a node is gone, the whole cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from testbed.config.schema import Config
from testbed.errors import ClusterError, CommError
from testbed.progress import console
from testbed.session import Session, open_session


class RecoveringSession:
    """A context manager whose ``session`` is the one that stands now.

    begin: what each new session needs before it is used, the first one too.
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
        """After a fault: ready for the next point. Raises the new fault if a second new cluster does not come up."""
        try:
            if isinstance(error, CommError):
                self.session.join()
                return
        except (ClusterError, CommError):
            pass  # the group cannot be joined again, so something is gone for good
        self.session.__exit__()
        self._open()

    def shape(self, bandwidth_mbps: float, shaper: str, queue_kb: float) -> None:
        """``Session.shape``, and once more on a mended cluster."""
        try:
            self.session.shape(bandwidth_mbps, shaper, queue_kb)
        except (ClusterError, CommError) as error:
            self.recover(error)
            self.session.shape(bandwidth_mbps, shaper, queue_kb)

    def _open(self) -> None:
        """A fresh cluster. If it does not come up, another one is tried once."""
        try:
            self._open_once()
        except (ClusterError, CommError) as error:
            console().print(f"cluster of {self._devices} devices: {error}; trying once more", soft_wrap=True)
            self._open_once()

    def _open_once(self) -> None:
        with contextlib.ExitStack() as stack:
            session = stack.enter_context(open_session(self._config, self._backend, self._devices))
            self._begin(session)
            stack.pop_all()
        self.session = session
