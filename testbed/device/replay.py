"""Outputs of the segments of one forward pass: recorded once, returned again by every replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

# Calls that read a tensor's description and never its values. Every other call counts as a read of the values.
METADATA = {
    *(torch.Tensor.shape.__get__, torch.Tensor.dtype.__get__, torch.Tensor.device.__get__),  # pyright: ignore
    *(torch.Tensor.ndim.__get__, torch.Tensor.nbytes.__get__, torch.Tensor.itemsize.__get__),  # pyright: ignore
    *(torch.Tensor.is_meta.__get__, torch.Tensor.requires_grad.__get__),  # pyright: ignore
    *(torch.Tensor.size, torch.Tensor.stride, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.nelement),
    *(torch.Tensor.__len__, torch.Tensor.element_size, torch.Tensor.storage_offset, torch.Tensor.is_contiguous),
    *(torch.Tensor.is_floating_point, torch.numel, torch.is_floating_point),
}


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
        return output

    def rewind(self) -> None:
        """Start again with the first segment's output."""
        self._position = 0

    def next(self) -> Any:
        """Return the next segment's output."""
        self._position += 1
        return self._outputs[self._position - 1]

    def _kept(self, tensor: Tensor) -> Tensor:
        return tensor if _storage(tensor) in self._reads.storages else tensor.to("meta")


class _ReadRecorder(TorchFunctionMode):
    """Records the storage of every tensor that this thread passes to torch, views included, metadata reads excluded."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in METADATA:
            self.add((args, kwargs))
        return func(*args, **kwargs)

    def add(self, tree: Any) -> None:
        """Record all tensors of a tree as read."""
        self.storages |= {_storage(tensor) for tensor in _tensors(tree)}


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
    """A copy of nested tuples, lists and dicts with ``change`` applied to every tensor. Other objects stay as they are."""
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
