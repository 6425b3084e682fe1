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
from testbed.methods.tensor import Widths
from testbed.models.shape import ModelShape
from testbed.models.transformer import Attention, Mlp
from testbed.models.vit import VisionTransformer
from testbed.output import Output

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RowMacs:
    """One rank's multiply-accumulates in a layer: of each product for one row, and of its attention for all rows."""

    project: int
    output: int
    column: int  # each of the MLP's two products
    attend: int


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
        macs = _row_macs(shape, Widths.of(self, shape, group.world), group.rank)
        x_PD = shard.run_embed(clock, inputs)
        for layer in shard.layers:
            h_PD = clock.run("compute", 0, partial(layer.block.norm1, x_PD))
            projected = ring.gather(h_PD, macs.project, partial(_project, layer.attn))
            mixed = clock.run("compute", macs.attend, partial(_mix, layer.attn, projected))
            sum_PD = ring.scatter(mixed, macs.output, layer.attn.proj)
            x_PD, h_PD = clock.run("compute", 0, partial(after_attention, layer.block, x_PD, sum_PD))
            inner = ring.gather(h_PD, macs.column, partial(_first_mlp_product, layer.mlp))
            sum_PD = ring.scatter(inner, macs.column, layer.mlp.fc2)
            x_PD = clock.run("compute", 0, partial(layer.after_mlp, x_PD, sum_PD))
        return shard.run_head(clock, x_PD, ring.compressed.messages)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """Twice in each layer: all tiles but the own one, and sums of all tiles but tile rank - 1, which it starts."""
        gathered = gathered_bits(self.codec, even_shares(shape.sequence, world), shape.hidden)
        return tuple(2 * shape.layers * (gathered[rank] + gathered[rank - 1]) for rank in range(world))

    def predicted_s(self, shape: ModelShape, devices: Sequence[Device], wire: Wire) -> float:
        """The cost model of the slowest rank: each step of a ring takes the longer of its product and its transfer."""
        world = len(devices)
        widths, tile = Widths.of(self, shape, world), even_shares(shape.sequence, world)[0]
        transfer_s = wire.message_s(self.codec.encoded_bytes(tile * shape.hidden))

        def rank_s(rank: int, device: Device) -> float:
            macs = _row_macs(shape, widths, rank)
            products_s = [device.seconds(tile * each) for each in (macs.project, macs.output, macs.column, macs.column)]
            # A ring of equal steps overlaps its N - 1 transfers with N - 1 of its N products.
            waits_s = shape.layers * (world - 1) * sum(max(0.0, transfer_s - product_s) for product_s in products_s)
            return device.seconds(self.macs(shape, rank, world)) + waits_s

        slowest_s = max(rank_s(rank, device) for rank, device in enumerate(devices))
        return slowest_s + self._exchanges_s(shape, world, wire)

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

    def gather(self, own_PD: Tensor, row_macs: int, product: Product) -> list[Tensor]:
        """``product`` of the tile of each rank. row_macs: MACs of the product for one row."""
        rank, world = self.compressed.rank, self.compressed.world
        results = [own_PD] * world
        tile_PD, message = own_PD, self.compressed.encode(own_PD)
        for step in range(world):
            owner, following = (rank - step) % world, (rank - step - 1) % world
            incoming = self._send_on(message, following, own_PD.shape[1]) if step < world - 1 else None
            results[owner] = self.clock.run("compute", row_macs * self.rows[owner], partial(product, tile_PD))
            if incoming is not None:
                message = incoming.wait()
                tile_PD = self.compressed.decode(message, (self.rows[following], own_PD.shape[1]))
        return results

    def scatter(self, tiles: list[Tensor], row_macs: int, product: Product) -> Tensor:
        """This rank's rows of the sum over ranks of ``product`` of each tile. row_macs: MACs for one row."""
        rank, world = self.compressed.rank, self.compressed.world
        incoming, total_PD = None, tiles[rank]
        for step in range(world):
            owner, following = (rank - 1 - step) % world, (rank - 2 - step) % world
            total_PD = self.clock.run("compute", row_macs * self.rows[owner], partial(product, tiles[owner]))
            if incoming is not None:
                add = partial(_add_decoded, self.compressed.codec, incoming.wait(), total_PD)
                total_PD = self.clock.run("decode", 0, add)
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


def _row_macs(shape: ModelShape, widths: Widths, rank: int) -> RowMacs:
    heads = widths.heads[rank]
    output = shape.hidden * heads * (shape.query_width // shape.heads)
    return RowMacs(
        project=3 * output,
        output=output,
        column=shape.hidden * widths.columns[rank],
        attend=shape.attend_macs(shape.sequence, shape.sequence) // shape.heads * heads,
    )
