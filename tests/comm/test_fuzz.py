"""What comes from a peer is checked before it is used: frames, their fragments, greetings, and who may send them."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from testbed.comm.connect import STRANGERS_WAITING, connect, listen
from testbed.comm.frame import (
    GREETING_BYTES,
    HEADER_BYTES,
    OPERATIONS,
    check_header,
    pack_greeting,
    pack_header,
    read_greeting,
)
from testbed.comm.tcp import TcpGroup
from testbed.errors import CommError
from tests.conftest import run_ranks

TOKEN = bytes(range(16))
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset

HEADERS = st.builds(
    pack_header,
    st.sampled_from(OPERATIONS),
    st.integers(0, 255),
    st.integers(0, 2**33),
    st.integers(0, 2**64 - 1),
    st.floats(),
)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with one replaced, the end missing or something after it."""
    data = draw(whole)
    place = draw(st.integers(0, max(0, len(data) - 1)))
    changes = [data[:place] + draw(st.binary(max_size=2)) + data[place + 1 :], data[:place], data + draw(st.binary())]
    return draw(st.sampled_from(changes))


@given(HEADERS | damaged(HEADERS) | st.binary(max_size=40), HEADERS)
@example(b"", pack_header("send", 3, 0, 8))
@example(b"AT", pack_header("send", 3, 0, 8))
@example(pack_header("send", 3, 0, 8) * 1000, pack_header("send", 3, 0, 8))
def test_only_the_expected_header_passes(header: bytes, expected: bytes) -> None:
    known, begin = expected[:16], header[16:]
    _, code, source, sequence, payload_bytes = struct.unpack(">2sBBIQ", known)
    if header[:16] == known and len(header) == HEADER_BYTES and math.isfinite(struct.unpack(">d", begin)[0]):
        assert check_header(header, OPERATIONS[code], source, sequence, payload_bytes) == struct.unpack(">d", begin)[0]
    else:
        with pytest.raises(CommError, match=f"rank {source} sent ") as error:
            check_header(header, OPERATIONS[code], source, sequence, payload_bytes)
        assert error.value.ranks == (source,) and len(str(error.value)) < 200


def test_a_peer_cannot_choose_when_its_message_arrives() -> None:
    with one_rank(2.0) as (group, theirs):
        far_s = time.monotonic() + 1e6
        theirs.sendall(pack_header("send", 1, 0, 8, far_s) + bytes(8))
        begin = time.monotonic()
        received(group, 8)
        assert time.monotonic() - begin < 1
        theirs.sendall(pack_header("send", 1, 1, 8, math.nan) + bytes(8))
        with pytest.raises(CommError, match="rank 1 sent send #1 with begin_s=nan"):
            received(group, 8)


GREETINGS = st.builds(pack_greeting, st.just(TOKEN) | st.binary(min_size=16, max_size=16), st.integers(0, 2**32 - 1))


@given(GREETINGS | damaged(GREETINGS) | st.binary(max_size=40))
def test_a_greeting_is_of_this_run_or_of_nobody(greeting: bytes) -> None:
    rank = read_greeting(greeting, TOKEN)
    if rank is None:
        assert len(greeting) != GREETING_BYTES or not greeting.startswith(TOKEN)
    else:
        assert greeting == pack_greeting(TOKEN, rank)


@contextlib.contextmanager
def one_rank(timeout_s: float) -> Iterator[tuple[TcpGroup, socket.socket]]:
    """Rank 0 of two, over real TCP, and the socket on which rank 1 would send."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs, to = (socket.create_connection(server.getsockname()) for _ in range(2))
        source, reader = server.accept()[0], server.accept()[0]
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    group = TcpGroup(0, 2, {1: to}, {1: source}, timeout_s)
    with contextlib.closing(group), reader, theirs:
        yield group, theirs


def frame(payload: bytes, sequence: int = 0) -> bytes:
    return pack_header("send", 1, sequence, len(payload)) + payload


def received(group: TcpGroup, size: int) -> bytes:
    return group.recv([size], torch.uint8, 1).numpy().tobytes()


def start(target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target)
    thread.start()
    return thread


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from([0, 1, 15, 16, 17, 1432, 1433, 16384, 16385, 40_000]), min_size=1, max_size=3),
    st.lists(st.integers(0, 130_000), max_size=8),
    st.integers(0, 2**32),  # a seed: payloads of that size are more than Hypothesis draws
)
def test_frames_arrive_whole_however_they_are_cut(sizes: list[int], cuts: list[int], seed: int) -> None:
    source = random.Random(seed)
    payloads = [source.randbytes(size) for size in sizes]
    stream = b"".join(frame(payload, sequence) for sequence, payload in enumerate(payloads))
    ends = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    with one_rank(5) as (group, theirs):
        sender = start(lambda: [theirs.sendall(stream[a:b]) for a, b in itertools.pairwise(ends)])
        assert [received(group, len(payload)) for payload in payloads] == payloads
        sender.join()


def test_a_frame_may_come_byte_by_byte() -> None:
    payload = bytes(range(40))

    def drip() -> None:
        for byte in frame(payload):
            theirs.sendall(bytes([byte]))
            time.sleep(0.001)

    with one_rank(5) as (group, theirs):
        sender = start(drip)
        assert received(group, len(payload)) == payload
        sender.join()


FRAMES = st.builds(frame, st.binary(min_size=8, max_size=8))


@settings(max_examples=40)
@given(FRAMES | damaged(FRAMES) | HEADERS | st.binary(max_size=100), st.sampled_from(["close", "reset", "stay"]))
def test_anything_else_is_an_error_that_names_the_peer(stream: bytes, ending: str) -> None:
    # Any time is possible for the sender's link; only a number must be there.
    valid = stream[:16] == frame(bytes(8))[:16] and len(stream) >= HEADER_BYTES + 8
    valid = valid and math.isfinite(struct.unpack(">d", stream[16:HEADER_BYTES])[0])
    with one_rank(0.05) as (group, theirs):
        theirs.sendall(stream)
        if ending == "close":
            theirs.shutdown(socket.SHUT_WR)
        if valid:
            assert received(group, 8) == stream[HEADER_BYTES:][:8]
        if ending == "reset":
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            theirs.close()
        begin = time.monotonic()
        with pytest.raises(CommError, match=r"rank 1 |ranks \[1\]") as error:
            received(group, 8)
        assert error.value.ranks == (1,)
        assert time.monotonic() - begin < 1.5


@pytest.mark.parametrize("claimed", [2**20, 2**31, 2**32, 2**62, 2**64 - 1])
@pytest.mark.parametrize("expected", [8, 1 << 20])
def test_a_claimed_length_allocates_nothing(claimed: int, expected: int) -> None:
    if claimed == expected:
        claimed += 1
    with one_rank(5) as (group, theirs):
        theirs.sendall(pack_header("send", 1, 0, claimed) + bytes(2000))
        tracemalloc.start()
        try:
            with pytest.raises(CommError, match=f"rank 1 sent send #0 of {claimed} bytes"):
                received(group, expected)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            pack_header("barrier", 1, 0, 0),
            "rank 1 sent barrier #0 of 0 bytes as rank 1; expected send #0 of 4000 bytes",
        ),
        (pack_header("send", 1, 1, 4000), "rank 1 sent send #1"),
        (pack_header("send", 2, 0, 4000), "rank 1 sent send #0 of 4000 bytes as rank 2"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", "rank 1 sent a corrupt frame in send: 47455420"),
        (pack_header("send", 1, 0, 4000)[:10], r"waited 0.1 s in send for ranks \[1\]"),
    ],
)
def test_a_wrong_message_is_named_even_if_it_is_shorter_than_awaited(wrong: bytes, message: str) -> None:
    with one_rank(0.1) as (group, theirs):
        theirs.sendall(wrong)
        with pytest.raises(CommError, match=message) as error:
            received(group, 4000)
        assert error.value.ranks == (1,)


def test_a_peer_that_never_reads_is_named() -> None:
    with one_rank(0.2) as (group, _), pytest.raises(CommError, match=r"waited 0.2 s in send for ranks \[1\]"):
        group.send(torch.zeros(1 << 23, dtype=torch.uint8), 1)


def stranger(address: tuple[str, int], greeting: bytes) -> socket.socket:
    connection = socket.create_connection(address)
    connection.sendall(greeting)
    return connection


def gathered(group: TcpGroup) -> list[int]:
    return group.all_gather(torch.tensor([group.rank]), [1] * group.world).tolist()


@settings(max_examples=25)
@given(st.lists(st.binary(max_size=40) | damaged(GREETINGS) | st.integers(0, 5), min_size=1, max_size=6), st.booleans())
@example([0, 3, 2**32 - 1], False)  # the receiver's own rank, and ranks that do not exist, with the right token
@example([b"", TOKEN, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], True)
def test_strangers_stop_nobody(greetings: list[bytes | int], reset: bool) -> None:
    others: list[socket.socket] = []

    def first(addresses: list[tuple[str, int]], token: bytes) -> None:
        for greeting in greetings:
            if not isinstance(greeting, int):
                others.append(stranger(addresses[0], greeting))
            elif not 0 < greeting < 3:
                others.append(stranger(addresses[0], pack_greeting(token, greeting)))
        if reset:
            for connection in others:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                connection.close()

    begin = time.monotonic()
    try:
        assert run_ranks(3, gathered, timeout_s=10, first=first) == [[0, 1, 2]] * 3
    finally:
        for connection in others:
            connection.close()
    assert time.monotonic() - begin < 5  # and not the ten seconds that a silent one could use up


def test_a_rank_that_has_joined_is_not_replaced() -> None:
    with listen("127.0.0.1") as listener, listen("127.0.0.1") as one, listen("127.0.0.1") as two:
        address = listener.getsockname()
        joined, second = (stranger(address, pack_greeting(TOKEN, 1)) for _ in range(2))
        late: list[socket.socket] = []

        def rank_2() -> None:
            second.settimeout(2)
            assert second.recv(1) == b""  # turned away while rank 2 is awaited
            late.append(stranger(address, pack_greeting(TOKEN, 2)))

        thread = start(rank_2)
        with joined, second:
            addresses = [address, one.getsockname(), two.getsockname()]
            with contextlib.closing(connect(0, addresses, listener, TOKEN, 4)) as group:
                joined.sendall(frame(b"one"))
                assert received(group, 3) == b"one"
            thread.join()
        late[0].close()


def test_a_greeting_may_come_byte_by_byte() -> None:
    listener, theirs = listen("127.0.0.1"), listen("127.0.0.1")
    address = listener.getsockname()

    def drip() -> None:
        with socket.create_connection(address) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in pack_greeting(TOKEN, 1) + frame(b"hello"):
                connection.sendall(bytes([byte]))
                time.sleep(0.002)

    sender = start(drip)
    with contextlib.closing(connect(0, [address, theirs.getsockname()], listener, TOKEN, 5)) as group, theirs:
        assert received(group, 5) == b"hello"
        sender.join()


def test_strangers_alone_are_named_when_the_ranks_do_not_come() -> None:
    listener, theirs = listen("127.0.0.1"), listen("127.0.0.1")
    silent, rude = stranger(listener.getsockname(), b""), stranger(listener.getsockname(), b"\x00" * GREETING_BYTES)
    stranger(listener.getsockname(), TOKEN).close()
    busy_s = time.thread_time()
    with silent, rude, theirs, pytest.raises(CommError) as error:
        connect(0, [listener.getsockname(), theirs.getsockname()], listener, TOKEN, 0.3)
    assert time.thread_time() - busy_s < 0.1  # one that is gone is not asked again and again
    assert str(error.value).startswith("rank 0 waited 0.3 s for ranks [1] to join; refused 127.0.0.1:")
    assert error.value.ranks == (1,)


def test_a_crowd_of_silent_strangers_is_bounded() -> None:
    listener, theirs = listen("127.0.0.1"), listen("127.0.0.1")
    address = listener.getsockname()
    crowd = [stranger(address, b"") for _ in range(STRANGERS_WAITING + 2)]

    def late() -> None:
        crowd[0].settimeout(4)
        assert crowd[0].recv(1) == b""  # the oldest is turned away while the others are awaited
        crowd.append(stranger(address, pack_greeting(TOKEN, 1)))

    with contextlib.ExitStack() as stack:
        rank_1 = start(late)
        group = stack.enter_context(contextlib.closing(connect(0, [address, theirs.getsockname()], listener, TOKEN, 5)))
        for connection in (*crowd, theirs):
            stack.enter_context(connection)
        rank_1.join()
        crowd[-1].sendall(frame(b"late"))
        assert received(group, 4) == b"late"


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "", "0"])
def test_data_ports_never_listen_on_all_addresses(address: str) -> None:
    with pytest.raises(ValueError, match=r"0\.0\.0\.0|::|''|'0'"):
        listen(address)


def test_data_ports_listen_on_the_given_address_until_all_have_joined() -> None:
    ports: list[tuple[str, int]] = []

    def main(group: TcpGroup) -> None:
        group.barrier()
        assert ports[group.rank][0] == "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(ports[group.rank], 1)

    run_ranks(2, main, first=lambda addresses, token: ports.extend(addresses))
    with listen("127.0.0.2") as listener:  # Linux answers on all of 127/8, so another of its addresses tells
        assert listener.getsockname()[0] == "127.0.0.2"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", listener.getsockname()[1]), 1)
