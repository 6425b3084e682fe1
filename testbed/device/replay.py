"""What the segments of a pass returned, recorded once and handed out again by every replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, TypeVar

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

T = TypeVar("T")


class Tape:
    """Outputs of segments, in order.

    Values are kept of tensors that something beyond the segments reads: messages, mostly. All others go from segment to
    segment, and a replay computes none, so they keep their shape and type alone (device ``meta``): with the activations
    of two dozen variants, eight emulated devices do not fit into a machine's memory. A replay that reads one
    nevertheless fails; it never sends other bytes.
    """

    def __init__(self) -> None:
        self._outputs: list[Any] = []
        self._readers = _Readers()
        self._position = 0

    def record(self, forward: Callable[[], T]) -> T:
        """Run a pass, in which ``add`` runs the segments, and keep what a replay needs, the pass's result included."""
        with self._readers:
            result = forward()
        self._readers.look_at(vars(result) if is_dataclass(result) else result)
        self._outputs = tree_map_only(Tensor, self._kept, self._outputs)
        return result

    def add(self, segment: Callable[[], T]) -> T:
        """Run one segment of the pass that is recorded."""
        self._readers.__exit__(None, None, None)
        try:
            output = segment()
        finally:
            self._readers.__enter__()
        self._outputs.append(output)
        return output

    def rewind(self) -> None:
        """``next`` begins again."""
        self._position = 0

    def next(self) -> Any:
        """The next segment's output."""
        self._position += 1
        return self._outputs[self._position - 1]

    def _kept(self, tensor: Tensor) -> Tensor:
        return tensor if _storage(tensor) in self._readers.read else tensor.to("meta")


class _Readers(TorchDispatchMode):
    """Notes the memory of every tensor that an operation of this thread takes, be it only to look at a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.look_at((args, kwargs))
        return func(*args, **(kwargs or {}))

    def look_at(self, tree: Any) -> None:
        """All tensors of a tree are read."""
        self.read |= {_storage(leaf) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}


def _storage(tensor: Tensor) -> int:
    """What views of the same memory have in common."""
    return tensor.untyped_storage().data_ptr()
