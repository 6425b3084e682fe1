"""Communication codecs for activations: a float32 tensor becomes a message of known length, and float32 again.

These scalar codecs work with any method (docs/baselines.md, section 5), unlike ASTRA's learned codebooks. A tensor is
encoded as one sequence of n numbers:

    codec  bytes            ratio  content of a message
    fp32   4n               1      the numbers themselves
    fp16   2n               2      IEEE half precision
    int8   n + 2*ceil(n/32) 3.76   integer multiples of a scale, one bfloat16 scale for each block of 32 numbers
    int4   n/2 + 2*...      7.11   the same with 15 quantization levels, two numbers in a byte
    topk   5n/8             6.4    the n/8 numbers of largest magnitude, each as float32 and a position of one byte

int8 and int4 use the blocks of 32 numbers of llama.cpp's Q8_0 and Q4_0, with two differences. The scale is a bfloat16,
which has the range of float32, and it is rounded up so that no number is clipped. int4 is symmetric (-7 to 7). topk
selects within blocks of 256 numbers, so a position takes one byte and blocks are independent.

Speed in GB/s of float32 (encode, decode) for 256 x 768 numbers: fp16 5.4, 10.1; int8 1.7, 6.8; int4 1.3, 3.6; topk
0.28, 4.1. Measured on one thread of a shared 2-core AMD EPYC (AVX2) with torch 2.13, CPU time, medians of 40. A tensor
is encoded as a whole: in chunks that fit the core's cache, the calls would cost more than the memory accesses.

On an emulated device, a codec is a few passes over memory: ``encoding`` and ``decoding`` have the bytes for each number
and the calls of torch below. The selection of topk is no such pass; its bytes took as long in the measurement above.

Suffixes: N numbers, B blocks, K numbers of a block.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from testbed.work import Passes

BLOCK = 32  # numbers with one scale
LARGEST = 2.0**127  # magnitude limit of int8 and int4: multiples of a rounded-up scale must be finite too
TINY = 2.0**-126  # the smallest scale; smaller ones would be subnormal, as is half of it, the error that it causes
SCALE_ROUNDING = 2.0**-7  # a bfloat16 keeps 8 bits, so rounding up adds less than this share
SPARSE_BLOCK, KEPT_SHARE = 256, 8  # topk keeps one number in 8


class Codec(ABC):
    """A stateless codec. Tensors are float32 on the CPU, messages are uint8 [encoded_bytes(numel)]."""

    name: ClassVar[str]
    lossy: ClassVar[bool] = True
    encoding: ClassVar[Passes]
    decoding: ClassVar[Passes]

    @abstractmethod
    def encoded_bytes(self, numel: int) -> int:
        """Bytes of a message of ``numel`` numbers."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """The message of a tensor of any shape. ValueError if a number is NaN or outside the codec's range."""

    def decode(self, message: Tensor, shape: Sequence[int]) -> Tensor:
        """The float32 tensor of this shape that a message encodes. ValueError for a wrong length or dtype."""
        expected = self.encoded_bytes(math.prod(shape))
        if message.dtype != torch.uint8 or message.shape != (expected,):
            found = f"{message.dtype} {list(message.shape)}"
            raise ValueError(f"message is {found}; expected uint8 [{expected}] for {self.name} of {list(shape)}")
        return self._decode(message.contiguous(), math.prod(shape)).view(tuple(shape))

    @abstractmethod
    def error_bound(self, x: Tensor) -> Tensor:
        """Upper bound of |decode(encode(x)) - x| for each number of ``x``, in the shape of ``x``."""

    @abstractmethod
    def _decode(self, message: Tensor, numel: int) -> Tensor: ...

    def _check(self, x: Tensor, largest: float) -> None:
        """ValueError unless all numbers are finite and at most ``largest`` in magnitude."""
        if x.numel() and not all(-largest <= end <= largest for end in x.aminmax()):  # so that NaN fails
            raise self._refuse(largest)

    def _refuse(self, largest: float) -> ValueError:
        return ValueError(f"{self.name} holds finite numbers up to {largest:g}; the tensor has NaN or larger ones")


class Fp32(Codec):
    """The numbers themselves in the machine's byte order, with any bit pattern including NaN. No copy is made."""

    name: ClassVar[str] = "fp32"
    lossy: ClassVar[bool] = False
    encoding: ClassVar[Passes] = Passes(0, 0)
    decoding: ClassVar[Passes] = Passes(0, 0)

    def encoded_bytes(self, numel: int) -> int:
        return 4 * numel

    def encode(self, x: Tensor) -> Tensor:
        return x.reshape(-1).view(torch.uint8)

    def error_bound(self, x: Tensor) -> Tensor:
        """Zero: the codec is lossless."""
        return torch.zeros_like(x)

    def _decode(self, message: Tensor, numel: int) -> Tensor:
        return message.view(torch.float32)


class Fp16(Codec):
    """Half precision: 11 significant bits, magnitudes up to 65504. Tensors with larger numbers are refused."""

    name: ClassVar[str] = "fp16"
    encoding: ClassVar[Passes] = Passes(4 + 6, 6)  # smallest and largest number with four comparisons, conversion
    decoding: ClassVar[Passes] = Passes(4 + 6, 2)  # copy, conversion

    def encoded_bytes(self, numel: int) -> int:
        return 2 * numel

    def encode(self, x: Tensor) -> Tensor:
        self._check(x, torch.finfo(torch.half).max)
        return x.reshape(-1).half().view(torch.uint8)

    def error_bound(self, x: Tensor) -> Tensor:
        """Half a unit in the last place: 2^-11 of the number, or half the smallest subnormal (2^-25) if larger."""
        return (x.abs() * 2.0**-11).clamp(min=2.0**-25)

    def _decode(self, message: Tensor, numel: int) -> Tensor:
        return _aligned(message, torch.half).float()


class BlockInteger(Codec):
    """Integers from -levels to levels in blocks of 32 numbers with one scale each; magnitudes up to 2^127.

    A message has all scales, then all integers. ``_pack`` and ``_unpack`` convert integers to bytes and back.
    """

    levels: ClassVar[int]

    def encoded_bytes(self, numel: int) -> int:
        return 2 * _blocks(numel, BLOCK) + self._packed_bytes(numel)

    def encode(self, x: Tensor) -> Tensor:
        count = x.numel()
        x_BK = F.pad(x.reshape(-1), (0, -count % BLOCK)).view(-1, BLOCK)
        work_BK = x_BK.abs()
        largest_B = work_BK.amax(1)  # torch.linalg's maximum norm does both, in ten times the time
        if not (largest_B <= LARGEST).all():  # written so that NaN fails
            raise self._refuse(LARGEST)
        bits_B = largest_B.div_(self.levels).clamp_(min=TINY).view(torch.int32)
        bits_B = bits_B.add_(0xFFFF).bitwise_right_shift_(16)  # the upper half of a float32 is a bfloat16
        scales = bits_B.to(torch.int16).view(torch.uint8)
        scale_B1 = bits_B.bitwise_left_shift_(16).view(torch.float32)[:, None]
        levels_BK = torch.div(x_BK, scale_B1, out=work_BK).round_().to(torch.int8)
        return torch.cat([scales, self._pack(levels_BK.view(-1)[:count])])

    def error_bound(self, x: Tensor) -> Tensor:
        """Half a step of the number's block. A step is largest magnitude / levels, and up to 2^-7 more by rounding up.

        The bound is at least 2^-127, half the smallest scale. The products' own rounding is within 1e-4 of a step.
        """
        count = x.numel()
        padded_BK = F.pad(x.reshape(-1), (0, -count % BLOCK)).view(-1, BLOCK)
        step_B1 = (padded_BK.abs().amax(1, keepdim=True) / self.levels * (1 + SCALE_ROUNDING)).clamp(min=TINY)
        return (step_B1 * 0.5001).expand_as(padded_BK).reshape(-1)[:count].view(x.shape)

    def _decode(self, message: Tensor, numel: int) -> Tensor:
        blocks = _blocks(numel, BLOCK)
        scale_B1 = _aligned(message[: 2 * blocks], torch.bfloat16).float()[:, None]
        levels_N = self._unpack(message[2 * blocks :], numel)
        result_N = levels_N.float()
        whole = numel - numel % BLOCK
        result_N[:whole].view(-1, BLOCK).mul_(scale_B1[: whole // BLOCK])
        result_N[whole:].mul_(scale_B1[-1:].view(-1))
        return result_N

    @abstractmethod
    def _packed_bytes(self, numel: int) -> int: ...

    @abstractmethod
    def _pack(self, levels_N: Tensor) -> Tensor: ...

    @abstractmethod
    def _unpack(self, packed: Tensor, numel: int) -> Tensor: ...


class Int8(BlockInteger):
    """255 quantization levels, one byte for each number."""

    name: ClassVar[str] = "int8"
    levels: ClassVar[int] = 127
    # padding, which copies even where there is none, magnitudes, largest of each block, division, rounding, conversion,
    # joining; others are of scales only and move 2 bytes for each number together
    encoding: ClassVar[Passes] = Passes(8 + 8 + 4 + 8 + 8 + 5 + 2 + 2, 15)
    decoding: ClassVar[Passes] = Passes(5 + 8, 4)  # conversion, multiplication by the scales

    def _packed_bytes(self, numel: int) -> int:
        return numel

    def _pack(self, levels_N: Tensor) -> Tensor:
        return levels_N.view(torch.uint8)

    def _unpack(self, packed: Tensor, numel: int) -> Tensor:
        return packed.view(torch.int8)


class Int4(BlockInteger):
    """15 quantization levels, two numbers in a byte.

    Byte i holds integer i in its lower half and integer i + n/2 in its upper half, so whole arrays are combined.
    """

    name: ClassVar[str] = "int4"
    levels: ClassVar[int] = 7
    encoding: ClassVar[Passes] = Passes(Int8.encoding.bytes_each + 3, 19)  # and two numbers in a byte
    decoding: ClassVar[Passes] = Passes(Int8.decoding.bytes_each + 5, 8)

    def _packed_bytes(self, numel: int) -> int:
        return (numel + 1) // 2

    def _pack(self, levels_N: Tensor) -> Tensor:
        half = self._packed_bytes(levels_N.numel())
        packed = levels_N[:half] & 15
        upper = levels_N[half:]
        packed[: upper.numel()] |= upper << 4
        return packed.view(torch.uint8)

    def _unpack(self, packed: Tensor, numel: int) -> Tensor:
        signed = packed.view(torch.int8)
        return torch.cat([(signed << 4) >> 4, signed[: numel // 2] >> 4])  # shifting right repeats the sign


class TopK(Codec):
    """Keeps the 32 numbers of largest magnitude in every block of 256, exactly. The others become 0.

    NaN and infinity are refused. A last block of m numbers keeps m / 8, rounded up. A message has all values, then all
    positions.
    """

    name: ClassVar[str] = "topk"
    encoding: ClassVar[Passes] = Passes(200, 10)
    decoding: ClassVar[Passes] = Passes(4 + 8, 6)  # zeros, positions and values

    def encoded_bytes(self, numel: int) -> int:
        return 5 * self._kept(numel)

    def encode(self, x: Tensor) -> Tensor:
        x_N = x.reshape(-1)
        self._check(x_N, torch.finfo(torch.float32).max)
        values, positions = [], []
        for part_BK in self._parts(x_N):
            index_BJ = part_BK.abs().topk(self._kept(part_BK.shape[1]), dim=1, sorted=False).indices
            values.append(part_BK.gather(1, index_BJ).reshape(-1))
            positions.append(index_BJ.reshape(-1).to(torch.uint8))
        return torch.cat([*(value.view(torch.uint8) for value in values), *positions])

    def error_bound(self, x: Tensor) -> Tensor:
        """The smallest magnitude that the number's block keeps: dropped numbers are not larger, kept ones are exact."""
        bounds = [
            part_BK.abs().topk(self._kept(part_BK.shape[1]), dim=1).values[:, -1:].expand_as(part_BK).reshape(-1)
            for part_BK in self._parts(x.reshape(-1))
        ]
        return torch.cat(bounds).view(x.shape)

    def _decode(self, message: Tensor, numel: int) -> Tensor:
        kept = self._kept(numel)
        values_K, positions_K = _aligned(message[: 4 * kept], torch.float32), message[4 * kept :].long()
        result_N = torch.zeros(numel, device=message.device)
        for part_BK in self._parts(result_N):
            blocks, each = part_BK.shape[0], self._kept(part_BK.shape[1])
            taken = blocks * each
            index_BJ = positions_K[:taken].view(blocks, each)
            if index_BJ.numel() and index_BJ.max() >= part_BK.shape[1]:
                raise ValueError(f"position {int(index_BJ.max())} in a block of {part_BK.shape[1]}: damaged message")
            part_BK.scatter_(1, index_BJ, values_K[:taken].view(blocks, each))
            values_K, positions_K = values_K[taken:], positions_K[taken:]
        return result_N

    @staticmethod
    def _kept(numel: int) -> int:
        whole, rest = divmod(numel, SPARSE_BLOCK)
        return whole * (SPARSE_BLOCK // KEPT_SHARE) + -(-rest // KEPT_SHARE)

    @staticmethod
    def _parts(x_N: Tensor) -> list[Tensor]:
        """Views of all full blocks, and of the last block if it is shorter."""
        whole = x_N.numel() - x_N.numel() % SPARSE_BLOCK
        parts = [x_N[:whole].view(-1, SPARSE_BLOCK), x_N[whole:].view(1, -1)]
        return [part for part in parts if part.numel()] or [x_N.view(1, 0)]


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Fp32(), Fp16(), Int8(), Int4(), TopK())}


def _blocks(numel: int, size: int) -> int:
    return -(-numel // size)


def _aligned(message: Tensor, dtype: torch.dtype) -> Tensor:
    """The bytes as numbers of this dtype. Copied, because a message may begin at any address of a larger buffer."""
    return message.clone().view(dtype)
