"""The part of ``make bench`` about ASTRA's exchange in each layer.

The nearest-codeword search is compared with two libraries. The whole exchange (encode, pack, all-gather, unpack,
decode) is compared with its lower bound, the time of its bits on the link. One thread, as on a device.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial

import faiss
import torch
from vector_quantize_pytorch import VectorQuantize

from experiments.benchmarks.optimizations import median_s
from experiments.measurement.calibration import lowest_steal
from testbed.astra.bit_packing import index_bits, pack, packed_bytes, unpack
from testbed.astra.quantizer import Quantizer
from testbed.session import Session
from topologies.link_graph import star

DEVICES, TOKENS, HIDDEN, CODEBOOK_SIZE = 4, 1024, 768, 1024
GROUPS = (1, 32)
BANDWIDTHS = (10, 20, 100)  # Mbps
REPEATS = 9
BUDGET_S = 5.0  # for all attempts at one measurement while CPU steal is high
MAX_OVER_LIBRARY = 1.1  # target: time over that of the faster library
MAX_OVER_BOUND = 1.5  # target: time of an exchange over its lower bound

Line = tuple[str, str, str, bool]  # what, measured, target, met


def all_gather_s(session: Session, size_bytes: int) -> tuple[float, float]:
    """(CPU steal in percent, median seconds) of all-gathers of ``size_bytes`` from each device."""
    steal_pct, times_s = lowest_steal(partial(session.collective_s, "all_gather", size_bytes, REPEATS), BUDGET_S)
    return steal_pct, statistics.median(times_s)


@torch.no_grad()
def encoders() -> Iterator[Line]:
    """Nearest-codeword search for one device's tokens by the testbed and two libraries, which must agree."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    for groups in GROUPS:
        books_GKd, x_PD = _example(groups)
        quantizer = Quantizer(books_GKd[None])
        searches: dict[str, Callable[[], torch.Tensor]] = {
            "testbed": lambda quantizer=quantizer, x_PD=x_PD: quantizer.encode(0, x_PD),
            "FAISS": _faiss(books_GKd, x_PD),
            "vector-quantize-pytorch": _vector_quantize(books_GKd, x_PD),
        }
        found = {name: search() for name, search in searches.items()}
        if any(quantizer.excess(0, x_PD, codes_PG).max() > 1e-3 for codes_PG in found.values()):
            raise AssertionError(f"G={groups}: a search does not find the nearest codewords")
        seconds = {name: median_s(search, REPEATS) for name, search in searches.items()}
        best = min(value for name, value in seconds.items() if name != "testbed")
        measured = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in seconds.items())
        what = f"nearest of {CODEBOOK_SIZE} codewords, {len(x_PD)} tokens, G={groups}"
        met = seconds["testbed"] <= MAX_OVER_LIBRARY * best
        yield what, measured, f"{MAX_OVER_LIBRARY:g} x the faster library", met


@torch.no_grad()
def exchanges() -> Iterator[Line]:
    """Time of one layer's exchange on emulated links, part by part, and relative to its lower bound."""
    torch.set_num_threads(1)
    bits, own = index_bits(CODEBOOK_SIZE), TOKENS // DEVICES
    with Session("mininet", star(DEVICES)) as session:
        for groups in GROUPS:
            books_GKd, x_PD = _example(groups)
            quantizer, size = Quantizer(books_GKd[None]), packed_bytes(own * groups, bits)
            codes_PG = quantizer.encode(0, x_PD)
            message, received_RG = pack(codes_PG, bits), codes_PG.repeat(DEVICES - 1, 1)
            local = {
                "encode": lambda quantizer=quantizer, x_PD=x_PD: quantizer.encode(0, x_PD),
                "pack": lambda codes_PG=codes_PG: pack(codes_PG, bits),
                "unpack": lambda message=message, groups=groups: [
                    unpack(message, own, groups, bits) for _ in range(DEVICES - 1)
                ],
                "decode": lambda quantizer=quantizer, received_RG=received_RG: quantizer.decode(0, received_RG),
            }
            parts_ms = {name: 1e3 * median_s(work, REPEATS) for name, work in local.items()}
            for bandwidth in BANDWIDTHS:
                session.shape(bandwidth)
                parts_ms["gather"] = 1e3 * all_gather_s(session, size)[1]
                total_ms, bound_ms = sum(parts_ms.values()), 8e3 * (DEVICES - 1) * size / (bandwidth * 1e6)
                measured = f"{total_ms:.2f} ms, {total_ms / bound_ms:.2f} x the lower bound: "
                measured += ", ".join(f"{name} {value:.2f}" for name, value in parts_ms.items())
                what = f"exchange of a layer, G={groups}, {bandwidth} Mbps"
                yield what, measured, f"{MAX_OVER_BOUND:g} x {bound_ms:.2f} ms", total_ms <= MAX_OVER_BOUND * bound_ms


def _example(groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codebooks [G, K, d] and one device's tokens [P, D]."""
    generator = torch.Generator().manual_seed(groups)
    books_GKd = torch.randn(groups, CODEBOOK_SIZE, HIDDEN // groups, generator=generator)
    return books_GKd, torch.randn(TOKENS // DEVICES, HIDDEN, generator=generator)


def _faiss(books_GKd: torch.Tensor, x_PD: torch.Tensor) -> Callable[[], torch.Tensor]:
    """[P, G] by FAISS's exact index, with one index for each group."""
    parts, indexes = [part.contiguous() for part in x_PD.split(books_GKd.shape[2], dim=1)], []
    for book_Kd in books_GKd:
        indexes.append(faiss.IndexFlatL2(book_Kd.shape[1]))
        indexes[-1].add(book_Kd.numpy())
    return lambda: torch.cat(
        [torch.from_numpy(i.search(x_Pd.numpy(), 1)[1]) for i, x_Pd in zip(indexes, parts, strict=True)], dim=1
    )


def _vector_quantize(books_GKd: torch.Tensor, x_PD: torch.Tensor) -> Callable[[], torch.Tensor]:
    """[P, G] by the library's layer, with one codebook for each head. It also looks up the codewords."""
    layer = VectorQuantize(
        dim=HIDDEN,
        heads=len(books_GKd),
        separate_codebook_per_head=True,
        codebook_dim=books_GKd.shape[2],
        codebook_size=CODEBOOK_SIZE,
    ).eval()
    layer.codebook = books_GKd if len(books_GKd) > 1 else books_GKd[0]
    return lambda: layer(x_PD[None])[1].reshape(len(x_PD), -1)
