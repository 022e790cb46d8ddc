# SPDX-License-Identifier: Apache-2.0
"""The client's side of the handshake: fed whole, in single bytes, with what follows attached."""

import random
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from blocklayer.base.errors import BlocklayerError, ProtocolError, RemoteError
from blocklayer.nbd import wire
from blocklayer.nbd.client_handshake import (
    EXTENDED,
    SIMPLE,
    STRUCTURED,
    Agreement,
    Handshake,
    Wish,
)
from blocklayer.nbd.client_list import Survey, flag_names
from blocklayer.nbd.client_options import DONE, STARTTLS, Negotiation
from tests.nbd.server_bytes import (
    FIXED,
    FLAGS,
    MiB,
    context,
    greeting,
    info_blocks,
    info_export,
    info_text,
    infos,
    listed,
    mode,
    negotiation,
    number,
    oldstyle,
    option,
    refused,
)

GO, SET, LIST = wire.OPT_GO, wire.OPT_SET_META_CONTEXT, wire.OPT_LIST
NOT_KNOWN = refused(GO)


def feed(engine: Negotiation, pieces: list[bytes]) -> bytes:
    """What the engine sends while it is fed."""
    sent = engine.outgoing()
    for piece in pieces:
        engine.receive(piece)
        sent += engine.outgoing()
        if engine.state == STARTTLS:
            engine.secured()
            sent += engine.outgoing()
    return sent


def cuts(data: bytes, rng: random.Random) -> Iterator[list[bytes]]:
    """The same bytes whole, one by one, and cut at random."""
    yield [data]
    yield [data[n : n + 1] for n in range(len(data))]
    points = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(12))})
    yield [data[a:b] for a, b in pairwise(points)]


def agree(data: bytes, wish: Wish, rng: random.Random) -> tuple[Agreement, bytes]:
    """The agreement and what was sent; however the bytes are cut, they are the same."""
    outcomes = []
    for behind in (b"", b"what follows"):
        for pieces in cuts(data + behind, rng):
            engine = Handshake(wish)
            sent = feed(engine, pieces)
            assert engine.state == DONE
            assert engine.rest == behind
            assert engine.agreement is not None
            outcomes.append((engine.agreement, sent))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    return outcomes[0]


@pytest.mark.parametrize("which", [SIMPLE, STRUCTURED, EXTENDED])
def test_an_agreement(which: str, rng: random.Random) -> None:
    pieces = (
        info_blocks(512, 4096, MiB),
        info_text(wire.INFO_NAME, "canonical"),
        info_text(wire.INFO_DESCRIPTION, "a disk"),
        info_text(99, "of the future"),
    )
    agreement, sent = agree(negotiation(which, *pieces), Wish("disk"), rng)
    info = agreement.info
    assert (info.size, info.flags) == (MiB, FLAGS)
    assert (info.block_minimum, info.block_preferred, info.block_maximum) == (512, 4096, MiB)
    assert (info.name, info.description) == ("canonical", "a disk")
    assert agreement.mode == which
    assert agreement.contexts == ({} if which == SIMPLE else {1: wire.BASE_ALLOCATION})
    assert sent.startswith(number(FIXED, 4))
    asked = [number(wire.OPTION_MAGIC, 8) + number(n, 4) in sent for n in (11, 8, 10, 7)]
    assert asked == [True, which != EXTENDED, which != SIMPLE, True]


def test_what_is_assumed_of_block_sizes(rng: random.Random) -> None:
    info = agree(negotiation(SIMPLE), Wish(), rng)[0].info
    assert not info.told_block_sizes
    assert (info.block_minimum, info.block_preferred, info.block_maximum) == (1, 4096, 32 * MiB)


@pytest.mark.parametrize("padding", [0, 124])
def test_a_server_without_go(padding: int, rng: random.Random) -> None:
    flags = wire.FIXED_NEWSTYLE | (0 if padding else wire.NO_ZEROES)
    data = (
        greeting(flags) + mode(STRUCTURED) + context() + option(SET) + NOT_KNOWN + listed("other")
    )
    data += listed("disk") + option(LIST) + number(MiB, 8) + number(FLAGS, 2) + bytes(padding)
    agreement, sent = agree(data, Wish("disk"), rng)
    assert (agreement.info.size, agreement.info.flags) == (MiB, FLAGS)
    assert agreement.contexts == {}
    assert sent.endswith(number(wire.OPT_EXPORT_NAME, 4) + number(4, 4) + b"disk")


def test_a_server_without_go_that_does_not_list(rng: random.Random) -> None:
    data = greeting() + mode(SIMPLE) + NOT_KNOWN + refused(LIST, wire.REP_ERR_POLICY)
    assert agree(data + number(MiB, 8) + number(1, 2), Wish("disk"), rng)[0].info.size == MiB


def test_a_server_without_go_that_lists_other_names() -> None:
    engine = Handshake(Wish("disk"))
    data = greeting() + mode(SIMPLE) + NOT_KNOWN + listed("other") + option(LIST)
    with pytest.raises(RemoteError, match="Requested export not available"):
        engine.receive(data)


def test_newstyle_that_is_not_fixed(rng: random.Random) -> None:
    data = greeting(0) + number(MiB, 8) + number(FLAGS, 2) + bytes(124)
    agreement, sent = agree(data, Wish("disk"), rng)
    assert agreement.mode == SIMPLE
    assert sent == bytes(4) + number(wire.OPTION_MAGIC, 8) + number(1, 4) + number(4, 4) + b"disk"


def test_oldstyle(rng: random.Random) -> None:
    agreement, sent = agree(oldstyle(), Wish(), rng)
    assert (agreement.info.size, agreement.info.flags, sent) == (MiB, FLAGS, b"")
    with pytest.raises(RemoteError, match="non-empty export names"):
        Handshake(Wish("disk")).receive(oldstyle())
    with pytest.raises(RemoteError, match="does not support STARTTLS"):
        Handshake(Wish(tls=True)).receive(oldstyle())
    with pytest.raises(ProtocolError, match="export flags"):
        Handshake(Wish()).receive(oldstyle(flags=1 << 20))


def test_contexts_that_a_server_does_not_have(rng: random.Random) -> None:
    for answer in (option(SET), refused(SET, wire.REP_ERR_UNSUP), refused(SET, 1 << 31 | 77)):
        data = greeting() + mode(STRUCTURED) + answer + infos(GO, info_export())
        assert agree(data, Wish(), rng)[0].contexts == {}


# --- TLS ----------------------------------------------------------------------------------------


def test_tls_comes_first() -> None:
    engine = Handshake(Wish(tls=True))
    engine.receive(greeting())
    assert engine.outgoing() == (
        number(FIXED, 4) + number(wire.OPTION_MAGIC, 8) + number(wire.OPT_STARTTLS, 4) + bytes(4)
    )
    engine.receive(option(wire.OPT_STARTTLS))
    assert engine.state == STARTTLS
    assert engine.outgoing() == b""
    engine.secured()
    engine.receive(mode(SIMPLE) + infos(GO, info_export()))
    assert engine.agreement is not None
    assert engine.agreement.secure


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refused(wire.OPT_STARTTLS), "Server does not support STARTTLS"),
        (
            refused(wire.OPT_STARTTLS, wire.REP_ERR_POLICY, "TLS not configured"),
            r"Denied by server for option 5 \(starttls\)\nserver reported: TLS not configured",
        ),
    ],
)
def test_no_plain_text_where_tls_was_wanted(answer: bytes, words: str) -> None:
    engine = Handshake(Wish(tls=True))
    engine.receive(greeting())
    engine.outgoing()
    with pytest.raises(RemoteError, match=words):
        engine.receive(answer)
    assert engine.outgoing() == b""


def test_a_server_that_knows_no_options_has_no_tls() -> None:
    with pytest.raises(RemoteError, match="does not support STARTTLS"):
        Handshake(Wish(tls=True)).receive(greeting(0))


def test_plain_text_behind_the_consent_to_tls_is_an_attack() -> None:
    engine = Handshake(Wish(tls=True))
    with pytest.raises(ProtocolError, match="plain text"):
        engine.receive(greeting() + option(wire.OPT_STARTTLS) + mode(SIMPLE))


# --- refusals and wrong servers -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "words", "code"),
    [
        (wire.REP_ERR_UNKNOWN, "Requested export not available\nserver reported: say\\x07", 2),
        (wire.REP_ERR_POLICY, r"Denied by server for option 7 \(go\)", 13),
        (wire.REP_ERR_TLS_REQD, "TLS negotiation required before option 7", 13),
        (wire.REP_ERR_SHUTDOWN, "Server shutting down before option 7", 108),
        (wire.REP_ERR_INVALID, "Invalid parameters for option 7", 22),
        (1 << 31 | 12345, "Unknown error code when asking for option 7", 22),
    ],
)
def test_refusals_of_an_export(kind: int, words: str, code: int) -> None:
    data = greeting() + mode(SIMPLE) + refused(GO, kind, "say\a")
    with pytest.raises(RemoteError, match=words.replace("\\x", "\\\\x")) as failure:
        Handshake(Wish("x")).receive(data)
    assert failure.value.errno == code


def after_mode(*answers: bytes) -> bytes:
    return greeting() + mode(STRUCTURED) + b"".join(answers)


def go_with(*pieces: bytes) -> bytes:
    return greeting() + mode(SIMPLE) + infos(GO, *pieces)


WRONG: list[tuple[bytes, str]] = [
    (b"HTTP/1.1 400 Bad", "Bad initial magic received"),
    (number(wire.MAGIC, 8) + bytes(8), "Bad server magic"),
    (greeting() + b"\1" * 20, "Unexpected option reply magic"),
    (greeting() + option(GO), "Unexpected option type 7, expected 11"),
    (greeting() + option(11, wire.REP_INFO), "by NBD_REP_INFO"),
    (greeting() + option(11, 55), "by reply type 55"),
    (greeting() + option(11, wire.REP_ACK, b"x"), "carries 1 bytes"),
    (greeting() + option(11, wire.REP_ERR_UNSUP, bytes(4097)), "too long"),
    (greeting() + option(11, wire.REP_INFO, bytes(8197)), "too long"),
    (after_mode(context("other:context"), option(SET)), "was not asked for"),
    (after_mode(context(), context()), "more than 1 replies"),
    (after_mode(option(SET, wire.REP_META_CONTEXT, b"\0\0\0\1"), option(SET)), "too short"),
    (after_mode(option(SET, wire.REP_SERVER)), "by NBD_REP_SERVER"),
    (go_with(), "NBD_INFO_EXPORT is missing"),
    (go_with(b"\0"), "too short"),
    (go_with(info_export() + b"\0"), "NBD_INFO_EXPORT has 13 bytes instead of 12"),
    (go_with(info_export(1 << 63)), "export length 9223372036854775808 is too large"),
    (go_with(info_export(), info_blocks(0)), "minimum block size 0"),
    (go_with(info_export(), info_blocks(3)), "minimum block size 3"),
    (go_with(info_export(), info_blocks(MiB, MiB)), "minimum block size"),
    (go_with(info_export(), info_blocks(4096, 512)), "preferred block size 512"),
    (go_with(info_export(), info_blocks(512, 4096, 1000)), "maximum block size 1000"),
    (go_with(info_export(1000), info_blocks(512)), "not multiple of minimum block size"),
    (go_with(info_export(), info_text(wire.INFO_NAME, "a\0b")), "NUL"),
    (go_with(info_export(), number(wire.INFO_NAME, 2) + b"\xff"), "not valid UTF-8"),
    (go_with(info_export(), info_text(wire.INFO_DESCRIPTION, "x" * 4097)), "4097 bytes"),
    (go_with(*[info_export()] * 65), "more than 64 replies"),
    (
        greeting() + mode(SIMPLE) + NOT_KNOWN + option(LIST, wire.REP_SERVER, number(9, 4)),
        "beyond its reply",
    ),
]


@pytest.mark.parametrize(("data", "words"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_servers_are_named_wrong(data: bytes, words: str, rng: random.Random) -> None:
    for pieces in cuts(data, rng):
        with pytest.raises(ProtocolError, match="The server broke the NBD protocol: ") as failure:
            feed(Handshake(Wish("disk")), pieces)
        assert words in str(failure.value)


def test_a_context_chosen_twice_is_wrong() -> None:
    wish = Wish(contexts=("a:b", "c:d"))
    for second in (context("a:b", 2), context("c:d", 1)):
        with pytest.raises(ProtocolError, match="twice"):
            Handshake(wish).receive(after_mode(context("a:b", 1), second, option(SET)))


def test_an_end_in_the_middle() -> None:
    engine = Handshake(Wish())
    engine.receive(greeting())
    assert "closed the connection during the negotiation" in str(engine.ended())


# --- listings -----------------------------------------------------------------------------------


def test_a_listing(rng: random.Random) -> None:
    look = wire.OPT_LIST_META_CONTEXT
    data = greeting() + mode(STRUCTURED) + listed("one", "first") + listed("") + option(LIST)
    data += infos(wire.OPT_INFO, info_export(), info_blocks(512))
    data += context(listing=True) + context("qemu:x", listing=True) + option(look)
    data += refused(wire.OPT_INFO, wire.REP_ERR_UNKNOWN, "gone")
    for pieces in cuts(data, rng):
        engine = Survey()
        sent = feed(engine, pieces)
        one, other = engine.listing.exports
        assert engine.state == DONE
        assert (one.name, one.description, one.contexts) == (
            "one",
            "first",
            ["base:allocation", "qemu:x"],
        )
        assert one.info is not None
        assert (one.info.size, one.info.block_minimum) == (MiB, 512)
        assert (other.name, other.info, other.contexts) == ("", None, None)
        assert "gone" in other.problem
        assert sent.endswith(number(wire.OPT_ABORT, 4) + bytes(4))


def test_a_listing_of_an_oldstyle_server() -> None:
    engine = Survey()
    engine.receive(oldstyle())
    assert engine.listing.oldstyle
    assert [export.info.size for export in engine.listing.exports if export.info] == [MiB]


def test_a_server_that_does_not_list() -> None:
    data = greeting() + mode(SIMPLE) + refused(LIST, wire.REP_ERR_POLICY, "secret")
    with pytest.raises(RemoteError, match="Denied by server for option 3"):
        Survey().receive(data)


def test_listings_end() -> None:
    engine = Survey()
    engine.receive(greeting() + mode(SIMPLE))
    entry = listed("x" * 4000, "y" * 4000)

    def go_on() -> None:
        for _ in range(100_000):
            engine.receive(entry)

    with pytest.raises(ProtocolError, match="no end"):
        go_on()


def test_names_of_flags() -> None:
    assert flag_names(0xCED) == ["flush", "fua", "trim", "zeroes", "df", "cache", "fast-zero"]


# --- noise --------------------------------------------------------------------------------------


def mutated(data: bytes, rng: random.Random) -> bytes:
    noisy = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        kind, place = rng.randrange(3), rng.randrange(len(noisy))
        if kind == 0:
            noisy[place] = rng.randrange(256)
        elif kind == 1:
            del noisy[place : place + rng.randrange(1, 9)]
        else:
            noisy[place:place] = rng.randbytes(rng.randrange(1, 9))
        noisy = noisy or bytearray(b"\0")
    return bytes(noisy)


@pytest.mark.parametrize("make", [lambda: Handshake(Wish("disk")), Survey])
def test_noise_gives_errors_of_ours(make: Callable[[], Negotiation], rng: random.Random) -> None:
    sound = negotiation(STRUCTURED, info_blocks(), info_text(wire.INFO_NAME, "name"))
    sound += listed("one", "first") + option(LIST)
    ended = 0
    for _ in range(1500):
        engine = make()
        try:
            feed(engine, [mutated(sound, rng)])
        except BlocklayerError:
            ended += 1
        assert len(engine.rest) <= len(sound) + 64
    assert ended
