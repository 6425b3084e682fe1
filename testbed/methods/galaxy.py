"""Galaxy (Ye et al., arXiv 2405.17245; docs/baselines.md, section 3.4): ``megatron_sp`` with overlapped communication.

Splits and volumes are those of ``megatron_sp``. Each all-gather becomes N - 1 steps around a ring: a device multiplies
the tile of rows that it has while the next tile arrives. Each reduce-scatter does likewise: a device computes its
partial sum of the next tile while the other ranks' sum of that tile arrives, adds the two and sends the result on.
Attention overlaps with nothing. A lossy codec encodes a gathered tile once and a partial sum anew at each hop.

Galaxy's planner, which profiles heterogeneous devices, is not reproduced. Heads and columns are shared equally or by
speed, rows always equally.

Shape suffixes: S sequence, P rows of a tile, D hidden, E width of this rank's heads, F its MLP columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from testbed.comm.codecs import Codec
from testbed.comm.group import Group, Handle, even_shares
from testbed.comm.wire import Wire
from testbed.compressed_collectives import CompressedGroup, Relay, gathered_bits
from testbed.device.clock import DeviceClock
from testbed.device.spec import Device
from testbed.methods.megatron_sp import MegatronSequenceParallel, MegatronShard, after_attention, simulate_split
from testbed.methods.row_parallel import embed_work, head_work
from testbed.methods.tensor import Widths
from testbed.models.shape import ModelShape
from testbed.models.transformer import Attention, Mlp
from testbed.models.vit import VisionTransformer
from testbed.output import Output
from testbed.work import NO_WORK, Work, attention, memory_pass, product, total

Product = Callable[[Tensor], Tensor]
RowWork = Callable[[int], Work]


@dataclass(frozen=True)
class RankWork:
    """One rank's work in a layer. Products are functions of the number of rows of a tile."""

    project: RowWork  # queries, keys and values
    output: RowWork
    first: RowWork  # the MLP's products
    second: RowWork
    attend: Work  # of all rows


class Galaxy(MegatronSequenceParallel):
    """Two ring all-gathers and two ring reduce-scatters per layer; each step overlaps with a matrix product."""

    name: ClassVar[str] = "galaxy"

    @property
    def traffic(self) -> tuple[str, ...]:
        """Tiles and sums to the right neighbor."""
        return ("ring",)

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: MegatronShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. Each rank has its own content tokens, rank 0 the logits."""
        shape, ring = shard.model.shape, _Ring(CompressedGroup(group, clock, self.codec), clock, shard.rows)
        work, own = _rank_work(shape, Widths.of(self, shape, group.world), group.rank), shard.rows[group.rank]
        norm, add_sum = shape.norm(own), shape.add_sum(own)
        x_PD = shard.run_embed(clock, inputs)
        for layer in shard.layers:
            h_PD = clock.run("compute", norm, partial(layer.block.norm1, x_PD))
            projected = ring.gather(h_PD, work.project, partial(_project, layer.attn))
            mixed = clock.run("compute", work.attend, partial(_mix, layer.attn, projected))
            sum_PD = ring.scatter(mixed, work.output, layer.attn.proj)
            x_PD, h_PD = clock.run("compute", add_sum + norm, partial(after_attention, layer.block, x_PD, sum_PD))
            inner = ring.gather(h_PD, work.first, partial(_first_mlp_product, layer.mlp))
            sum_PD = ring.scatter(inner, work.second, layer.mlp.fc2)
            x_PD = clock.run("compute", add_sum, partial(layer.after_mlp, x_PD, sum_PD))
        return shard.run_head(clock, x_PD, ring.compressed.messages)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """Twice in each layer: all tiles but the own one, and sums of all tiles but tile rank - 1, which it starts."""
        gathered = gathered_bits(self.codec, even_shares(shape.sequence, world), shape.hidden)
        return tuple(2 * shape.layers * (gathered[rank] + gathered[rank - 1]) for rank in range(world))

    def rounds(self, shape: ModelShape, world: int, wire: Wire) -> int:
        """Four rings per layer."""
        return 4 * shape.layers * (world - 1)

    def work(self, shape: ModelShape, rank: int, world: int) -> Work:
        """As ``megatron_sp``, with products tile by tile."""
        rows, work = even_shares(shape.sequence, world), _rank_work(shape, Widths.of(self, shape, world), rank)
        tiles = total(each(count) for count in rows for each in (work.project, work.output, work.first, work.second))
        own = 2 * (shape.norm(rows[rank]) + shape.add_sum(rows[rank]))
        layers = shape.layers * (tiles + work.attend + own + self._exchange_work(shape, rows, rank))
        return embed_work(shape, rows, rank) + layers + head_work(shape, rows, rank)

    def _exchange_work(self, shape: ModelShape, rows: Sequence[int], rank: int) -> Work:
        """Codecs and additions of a layer: a gathered tile is encoded once, a partial sum at each hop."""
        numbers, world = [count * shape.hidden for count in rows], len(rows)
        others = [peer for peer in range(world) if peer != rank]
        if world == 1:
            return NO_WORK
        gather = self.codec.encoding.work(numbers[rank]) + total(self.codec.decoding.work(numbers[p]) for p in others)
        held = [numbers[(rank - 1 - step) % world] for step in range(world)]  # own terms, in the order of the steps
        sent = total(map(self.codec.encoding.work, held[:-1]))
        received = total(_add_work(self.codec, each) for each in held[1:])
        return 2 * (gather + sent + received)

    def predicted_s(self, shape: ModelShape, devices: Sequence[Device], wire: Wire) -> float:
        """The cost model of the slowest rank: each step of a ring takes the longer of its product and its transfer."""
        world = len(devices)
        widths, tile = Widths.of(self, shape, world), even_shares(shape.sequence, world)[0]
        transfer_s = wire.message_s(self.codec.encoded_bytes(tile * shape.hidden)) + wire.exchange_s

        def rank_s(rank: int, device: Device) -> float:
            work = _rank_work(shape, widths, rank)
            products_s = [device.seconds(each(tile)) for each in (work.project, work.output, work.first, work.second)]
            # A ring of equal steps overlaps its N - 1 transfers with N - 1 of its N products.
            waits_s = shape.layers * (world - 1) * sum(max(0.0, transfer_s - product_s) for product_s in products_s)
            return device.seconds(self.work(shape, rank, world)) + waits_s

        return max(rank_s(rank, device) for rank, device in enumerate(devices))

    @torch.no_grad()
    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Method.simulate: as ``megatron_sp``, but a sum is encoded at each hop of the ring."""
        relay, rows = Relay(self.codec, world, sent), even_shares(model.shape.sequence, world)

        def scatter(partials: list[Tensor]) -> list[Tensor]:
            tiles = [partial_SD.split(rows) for partial_SD in partials]
            held = [tiles[rank][rank - 1] for rank in range(world)]
            for step in range(1, world):
                passed = relay.all_gather(held)
                held = [passed[rank - 1] + tiles[rank][(rank - 1 - step) % world] for rank in range(world)]
            return held

        return simulate_split(model, inputs, rows, Widths.of(self, model.shape, world), relay.all_gather_seen, scatter)


@dataclass(frozen=True)
class _Ring:
    """Tiles, one of each rank's rows, that travel to the right neighbor while products run. rows: of each rank."""

    compressed: CompressedGroup
    clock: DeviceClock
    rows: list[int]

    def gather(self, own_PD: Tensor, work: RowWork, product: Product) -> list[Tensor]:
        """``product`` of the tile of each rank. work: of the product."""
        rank, world = self.compressed.rank, self.compressed.world
        results = [own_PD] * world
        tile_PD, message = own_PD, self.compressed.encode(own_PD)
        for step in range(world):
            owner, following = (rank - step) % world, (rank - step - 1) % world
            incoming = self._send_on(message, following, own_PD.shape[1]) if step < world - 1 else None
            results[owner] = self.clock.run("compute", work(self.rows[owner]), partial(product, tile_PD))
            if incoming is not None:
                message = incoming.wait()
                tile_PD = self.compressed.decode(message, (self.rows[following], own_PD.shape[1]))
        return results

    def scatter(self, tiles: list[Tensor], work: RowWork, product: Product) -> Tensor:
        """This rank's rows of the sum over ranks of ``product`` of each tile. work: of the product."""
        rank, world = self.compressed.rank, self.compressed.world
        incoming, total_PD = None, tiles[rank]
        for step in range(world):
            owner, following = (rank - 1 - step) % world, (rank - 2 - step) % world
            total_PD = self.clock.run("compute", work(self.rows[owner]), partial(product, tiles[owner]))
            if incoming is not None:
                codec = self.compressed.codec
                add = partial(_add_decoded, codec, incoming.wait(), total_PD)
                total_PD = self.clock.run("decode", _add_work(codec, total_PD.numel()), add)
            if step < world - 1:
                incoming = self._send_on(self.compressed.encode(total_PD), following, total_PD.shape[1])
        return total_PD

    def _send_on(self, message: Tensor, following: int, width: int) -> Handle:
        """Send a message to the right neighbor while the rows of rank ``following`` arrive from the left one."""
        rank, world = self.compressed.rank, self.compressed.world
        size = self.compressed.codec.encoded_bytes(self.rows[following] * width)
        return self.compressed.group.exchange_async({(rank + 1) % world: message}, {(rank - 1) % world: size})


def _add_decoded(codec: Codec, message: Tensor, own: Tensor) -> Tensor:
    return codec.decode(message, own.shape) + own


def _project(attn: Attention, h_PD: Tensor) -> Tensor:
    """Queries, keys and values of a tile side by side, [P, 3 E]."""
    return torch.cat([attn.q(h_PD), attn.k(h_PD), attn.v(h_PD)], dim=-1)


def _mix(attn: Attention, projected: list[Tensor]) -> list[Tensor]:
    """Attention of all rows to all rows in this rank's heads: a tile [P, E] for each rank."""
    q, k, v = (attn.split_heads(side[None]) for side in torch.cat(projected).chunk(3, dim=-1))
    return list(attn.mix(q, k, v)[0].split([len(tile) for tile in projected]))


def _first_mlp_product(mlp: Mlp, h_PD: Tensor) -> Tensor:
    """This rank's columns of the MLP's hidden state, [P, F]."""
    return F.gelu(mlp.fc1(h_PD), approximate=mlp.approximate)


def _add_work(codec: Codec, numbers: int) -> Work:
    return codec.decoding.work(numbers) + memory_pass(3 * numbers)


def _rank_work(shape: ModelShape, widths: Widths, rank: int) -> RankWork:
    width, columns = shape.query_width // shape.heads * widths.heads[rank], widths.columns[rank]
    return RankWork(
        project=lambda rows: 3 * product(rows, shape.hidden, width) + memory_pass(6 * rows * width),
        output=lambda rows: product(rows, width, shape.hidden),
        first=lambda rows: product(rows, shape.hidden, columns) + memory_pass(2 * rows * columns),
        second=lambda rows: product(rows, columns, shape.hidden),
        attend=memory_pass(6 * shape.sequence * width) + attention(shape.sequence, shape.sequence, width, width),
    )
