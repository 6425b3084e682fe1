"""Outputs of the segments of one forward pass: recorded once, returned again by every replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeVar

from torch import Tensor
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

# What describes a tensor. Reading it does not read values; every other call to torch counts as a read of the values.
PROPERTIES = ("shape", "dtype", "device", "ndim", "nbytes", "itemsize", "is_meta", "requires_grad")
METHODS = ("size", "stride", "dim", "numel", "nelement", "element_size", "storage_offset", "is_contiguous", "__len__")
METADATA = {*(getattr(Tensor, name).__get__ for name in PROPERTIES), *(getattr(Tensor, name) for name in METHODS)}


class ReplayCache:
    """Outputs of segments, in the order in which the segments ran.

    A tensor keeps its values if code outside the segments reads it, which is mostly the case for messages. All other
    tensors pass from one segment to the next. A replay computes no segment, so such a tensor keeps only its shape and
    dtype (device ``meta``). Without this, the activations of two dozen method variants on eight emulated devices
    exceed the memory of one machine. A replay that reads a tensor without values fails; it never sends wrong bytes.
    """

    def __init__(self) -> None:
        self._outputs: list[Any] = []
        self._reads = _ReadRecorder()
        self._position = 0

    def record(self, forward: Callable[[], T]) -> T:
        """Run a forward pass whose segments go through ``add``. Keep what a replay needs and what the pass returns."""
        with self._reads:
            result = forward()
        self._reads.add(result)
        self._outputs = [_map_tensors(self._kept, output) for output in self._outputs]
        return result

    def add(self, segment: Callable[[], T]) -> T:
        """Run one segment of the recorded pass."""
        self._reads.__exit__(None, None, None)
        try:
            output = segment()
        finally:
            self._reads.__enter__()
        self._outputs.append(output)
        self._reads.watch(output)
        return output

    def rewind(self) -> None:
        """Start again with the first segment's output."""
        self._position = 0

    def next(self) -> Any:
        """Return the next segment's output."""
        self._position += 1
        return self._outputs[self._position - 1]

    def _kept(self, tensor: Tensor) -> Tensor:
        return tensor if _storage(tensor) in self._reads.read else tensor.to("meta")


class _ReadRecorder(TorchFunctionMode):
    """Records which of the watched tensors this thread passes to torch, views included and metadata reads excluded.

    A tensor is known by the address of its storage. Watched tensors must stay alive: a freed address may be reused.
    C++ bindings that take tensors, as torch.distributed has, do not show here.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watched: set[int] = set()
        self.read: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in METADATA:
            self.add((args, kwargs))
        return func(*args, **kwargs)

    def watch(self, tree: Any) -> None:
        """Record later reads of all tensors of a tree."""
        self._watched |= {_storage(tensor) for tensor in _tensors(tree)}

    def add(self, tree: Any) -> None:
        """Record a read of all tensors of a tree."""
        self.read |= {_storage(tensor) for tensor in _tensors(tree)} & self._watched


def _tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, dicts and dataclasses."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from _tensors(item)
    elif is_dataclass(tree) and not isinstance(tree, type):
        yield from _tensors(vars(tree))


def _map_tensors(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """A copy of nested tuples, lists and dicts with ``change`` applied to every tensor; other objects are shared."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _map_tensors(change, value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        items = [_map_tensors(change, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)  # a NamedTuple takes its fields
    return tree


def _storage(tensor: Tensor) -> int:
    """The address that all views of the same memory share."""
    return tensor.untyped_storage().data_ptr()
