# SPDX-License-Identifier: Apache-2.0
"""The server's negotiation, byte by byte: every option, every refusal, and hostile clients."""

import struct
import time
from collections.abc import Sequence

import pytest

from blocklayer.nbd import server_handshake as engine
from blocklayer.nbd import wire
from blocklayer.nbd.offers import EXTENDED, SIMPLE, STRUCTURED, Offer, Offers
from blocklayer.nbd.server_handshake import (
    CHOSEN,
    ENDED,
    HAGGLING,
    STARTTLS,
    TLS_OFF,
    TLS_REQUIRED,
    ServerHandshake,
)
from tests.support.nbd_peer import context_data, go_data, option_bytes, text

Replies = list[tuple[int, int, bytes]]
"""(option, reply type, data)"""

BOTH_FLAGS = wire.FIXED_NEWSTYLE | wire.NO_ZEROES
BITMAP = "qemu:dirty-bitmap:b0"
GREETING = struct.pack(">QQH", wire.MAGIC, wire.OPTION_MAGIC, BOTH_FLAGS)
FLAGS = wire.FLAG_SEND_FLUSH | wire.FLAG_SEND_FUA


class Shelf(Offers):
    """Exports of a test."""

    def __init__(self, *offers: Offer) -> None:
        self.offers = {offer.name: offer for offer in offers}

    def names(self) -> list[tuple[str, str]]:
        return [(offer.name, offer.description) for offer in self.offers.values()]

    def find(self, name: str) -> Offer | None:
        return self.offers.get(name)


DISK = Offer(
    name="disk",
    size=1 << 40,
    flags=FLAGS,
    description="a test’s",
    contexts=(wire.BASE_ALLOCATION, wire.ALLOCATION_DEPTH, BITMAP, "qemu:dirty-bitmap:b1"),
)
DEFAULT = Offer(name="", size=5, flags=FLAGS)
COARSE = Offer(name="coarse", size=4096, flags=FLAGS, block_minimum=512)
SHELF = Shelf(DISK, DEFAULT, COARSE)


def client_flags(flags: int = BOTH_FLAGS) -> bytes:
    return struct.pack(">I", flags)


def started(*, tls: str = TLS_OFF, offers: Offers = SHELF) -> ServerHandshake:
    """A negotiation behind its greetings."""
    handshake = ServerHandshake(offers, tls=tls)
    assert handshake.outgoing() == GREETING
    handshake.receive(client_flags())
    assert handshake.outgoing() == b""
    return handshake


def everything(handshake: ServerHandshake) -> bytes:
    """All that it has to say now."""
    said = bytearray()
    while piece := handshake.outgoing():
        said += piece
    return bytes(said)


def parsed(data: bytes) -> Replies:
    """The option replies in a stream, which must end with the last of them."""
    replies: Replies = []
    while data:
        magic, option, kind, length = struct.unpack_from(">QIII", data)
        assert magic == wire.OPTION_REPLY_MAGIC
        assert length <= len(data) - 20
        replies.append((option, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return replies


def ask(handshake: ServerHandshake, option: int, data: bytes = b"") -> Replies:
    """Send an option; its replies."""
    handshake.receive(option_bytes(option, data))
    replies = parsed(everything(handshake))
    assert all(about == option for about, _, _ in replies)
    return replies


def refusal(replies: Replies) -> int:
    """The error that is the only answer, with words for people."""
    assert len(replies) == 1
    _, kind, words = replies[0]
    assert kind & wire.REP_ERROR
    assert words.decode().isprintable()
    assert words
    return kind


def acknowledged(replies: Replies) -> bool:
    return replies[-1][1] == wire.REP_ACK and replies[-1][2] == b""


# --- one conversation, cut everywhere -----------------------------------------------------------

OPENING = b"".join(
    (
        client_flags(),
        option_bytes(99, b"what?"),
        option_bytes(wire.OPT_STRUCTURED_REPLY),
        option_bytes(wire.OPT_LIST),
        option_bytes(wire.OPT_LIST_META_CONTEXT, context_data("disk", [])),
        option_bytes(wire.OPT_EXTENDED_HEADERS),
        option_bytes(wire.OPT_SET_META_CONTEXT, context_data("disk", ["base:allocation", BITMAP])),
        option_bytes(wire.OPT_INFO, go_data("nowhere")),
        option_bytes(wire.OPT_GO, go_data("disk", [0, 1, 2, 3])),
    )
)
FOLLOWING = b"requests that came with the choice"
ENDINGS = {
    "go": (OPENING, CHOSEN),
    "export name": (client_flags(0) + option_bytes(wire.OPT_EXPORT_NAME, b"disk"), CHOSEN),
    "abort": (client_flags() + option_bytes(wire.OPT_ABORT), ENDED),
    "wrong magic": (client_flags() + bytes(16), ENDED),
    "too long": (client_flags() + option_bytes(wire.OPT_LIST, bytes(70_000)), HAGGLING),
    "tls": (client_flags() + option_bytes(wire.OPT_STARTTLS), STARTTLS),
}


def talk(pieces: Sequence[bytes], *, tls: str) -> tuple[bytes, ServerHandshake]:
    """What is answered to a stream that comes in pieces."""
    handshake = ServerHandshake(SHELF, tls=tls)
    said = handshake.outgoing()
    for piece in pieces:
        handshake.receive(piece)
        said += everything(handshake)
    return said, handshake


@pytest.mark.parametrize("name", ENDINGS)
def test_answers_do_not_depend_on_how_the_stream_is_cut(name: str) -> None:
    stream, state = ENDINGS[name]
    tls = TLS_REQUIRED if name == "tls" else TLS_OFF
    step = max(1, len(stream) // 500)
    whole, handshake = talk([stream], tls=tls)
    assert handshake.state == state
    cuts = [[stream[:cut], stream[cut:]] for cut in range(0, len(stream), step)]
    cuts.append([stream[at : at + step] for at in range(0, len(stream), step)])
    for pieces in cuts:
        said, cut_up = talk(pieces, tls=tls)
        assert said == whole
        assert (cut_up.state, cut_up.choice) == (state, handshake.choice)


@pytest.mark.parametrize("name", ["go", "export name"])
def test_what_follows_the_choice_is_kept(name: str) -> None:
    stream, _ = ENDINGS[name]
    whole, handshake = talk([stream], tls=TLS_OFF)
    assert handshake.rest == b""
    for cut in (0, len(stream) - 1, len(stream)):
        said, cut_up = talk([stream[:cut], stream[cut:] + FOLLOWING], tls=TLS_OFF)
        assert said == whole
        assert cut_up.rest == FOLLOWING


def test_the_conversation_says_what_it_should() -> None:
    said, handshake = talk([OPENING], tls=TLS_OFF)
    assert said.startswith(GREETING)
    replies = parsed(said[len(GREETING) :])
    kinds = [(option, kind & 0xFFFF) for option, kind, _ in replies]
    errors = [kind for _, kind, _ in replies if kind & wire.REP_ERROR]
    assert errors == [wire.REP_ERR_UNSUP, wire.REP_ERR_UNKNOWN]
    assert kinds[1:6] == [(8, 1), (3, 2), (3, 2), (3, 2), (3, 1)]
    names = [data[4 : 4 + int.from_bytes(data[:4], "big")] for _, k, data in replies if k == 2]
    assert names == [b"disk", b"", b"coarse"]
    assert handshake.choice is not None
    assert handshake.choice.mode == EXTENDED
    assert sorted(handshake.choice.contexts.values()) == ["base:allocation", BITMAP]
    assert len(set(handshake.choice.contexts)) == 2


# --- greetings ----------------------------------------------------------------------------------


def test_unknown_client_flags_end_it() -> None:
    handshake = ServerHandshake(SHELF)
    handshake.receive(client_flags(4))
    assert handshake.state == ENDED
    assert "0x4" in handshake.problem


@pytest.mark.parametrize("flags", range(4))
def test_padding_is_left_out_only_by_agreement(flags: int) -> None:
    handshake = ServerHandshake(SHELF)
    handshake.outgoing()
    handshake.receive(client_flags(flags) + option_bytes(wire.OPT_EXPORT_NAME, b""))
    answer = handshake.outgoing()
    padding = 0 if flags & wire.NO_ZEROES else 124
    assert answer == struct.pack(">QH", 5, FLAGS | wire.FLAG_HAS_FLAGS) + bytes(padding)
    assert handshake.state == CHOSEN
    assert handshake.choice is not None
    assert handshake.choice.mode == SIMPLE


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [0, 4, 12, 99, 0x7FFFFFFF, 0xFFFFFFFF])
def test_unknown_options_are_told_so(option: int) -> None:
    handshake = started()
    assert refusal(ask(handshake, option, b"data")) == wire.REP_ERR_UNSUP
    assert handshake.state == HAGGLING


@pytest.mark.parametrize(
    "option",
    [
        wire.OPT_LIST,
        wire.OPT_STRUCTURED_REPLY,
        wire.OPT_EXTENDED_HEADERS,
        wire.OPT_STARTTLS,
    ],
)
def test_options_without_data_have_none(option: int) -> None:
    handshake = started(tls=TLS_REQUIRED if option == wire.OPT_STARTTLS else TLS_OFF)
    assert refusal(ask(handshake, option, b"x")) == wire.REP_ERR_INVALID
    assert handshake.state == HAGGLING


def test_abort_is_acknowledged() -> None:
    handshake = started()
    assert acknowledged(ask(handshake, wire.OPT_ABORT))
    assert handshake.state == ENDED
    assert handshake.problem == ""


def test_abort_with_data_is_acknowledged_too() -> None:
    assert acknowledged(ask(started(), wire.OPT_ABORT, b"because"))


def test_listing_tells_descriptions() -> None:
    replies = ask(started(), wire.OPT_LIST)
    assert acknowledged(replies)
    assert [data for _, kind, data in replies if kind == wire.REP_SERVER] == [
        text("disk") + "a test’s".encode(),
        text(""),
        text("coarse"),
    ]


def test_info_tells_what_was_asked_for() -> None:
    replies = ask(started(), wire.OPT_INFO, go_data("disk", [1, 2, 3, 77]))
    assert acknowledged(replies)
    items = {int.from_bytes(data[:2], "big"): data[2:] for _, k, data in replies if k == 3}
    assert items == {
        wire.INFO_EXPORT: struct.pack(">QH", 1 << 40, FLAGS | 1),
        wire.INFO_NAME: b"disk",
        wire.INFO_DESCRIPTION: "a test’s".encode(),
        wire.INFO_BLOCK_SIZE: struct.pack(">III", 1, 4096, 32 << 20),
    }


def test_names_come_only_when_asked_for() -> None:
    replies = ask(started(), wire.OPT_INFO, go_data("disk"))
    items = {int.from_bytes(data[:2], "big") for _, k, data in replies if k == 3}
    assert items == {wire.INFO_EXPORT, wire.INFO_BLOCK_SIZE}


def test_info_goes_on_and_go_begins() -> None:
    handshake = started()
    assert acknowledged(ask(handshake, wire.OPT_INFO, go_data("")))
    assert handshake.state == HAGGLING
    assert acknowledged(ask(handshake, wire.OPT_GO, go_data("")))
    assert handshake.state == CHOSEN


def test_a_minimum_block_must_be_asked_for() -> None:
    handshake = started()
    asked = ask(handshake, wire.OPT_INFO, go_data("coarse"))
    assert refusal(asked) == wire.REP_ERR_BLOCK_SIZE_REQD
    assert acknowledged(ask(handshake, wire.OPT_INFO, go_data("coarse", [3])))


@pytest.mark.parametrize("option", [wire.OPT_INFO, wire.OPT_GO])
@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (go_data("nowhere"), wire.REP_ERR_UNKNOWN),
        (b"", wire.REP_ERR_INVALID),
        (b"\0\0\0", wire.REP_ERR_INVALID),
        (struct.pack(">I", 5) + b"disk", wire.REP_ERR_INVALID),
        (struct.pack(">I", 0xFFFFFFFF), wire.REP_ERR_INVALID),
        (go_data("disk")[:-1], wire.REP_ERR_INVALID),
        (go_data("disk") + b"\0", wire.REP_ERR_INVALID),
        (text("disk") + struct.pack(">H", 2) + b"\0\0\0", wire.REP_ERR_INVALID),
        (text("disk") + struct.pack(">H", 0xFFFF), wire.REP_ERR_INVALID),
        (text("di\0sk") + bytes(2), wire.REP_ERR_INVALID),
        (struct.pack(">I", 2) + b"\xc3\x28" + bytes(2), wire.REP_ERR_INVALID),
        (struct.pack(">I", 3) + b"\xed\xa0\x80" + bytes(2), wire.REP_ERR_INVALID),
        (text("x" * 4097) + bytes(2), wire.REP_ERR_INVALID),
        (text("x" * 4096) + bytes(2), wire.REP_ERR_UNKNOWN),
        (text("é" * 2048) + bytes(2), wire.REP_ERR_UNKNOWN),
    ],
)
def test_nonsense_in_info_and_go(option: int, data: bytes, kind: int) -> None:
    handshake = started()
    assert refusal(ask(handshake, option, data)) == kind
    assert handshake.state == HAGGLING
    assert acknowledged(ask(handshake, wire.OPT_GO, go_data("disk"))), "no way on"


def test_the_message_about_a_long_name_is_no_longer_than_a_string() -> None:
    (_, _, words), *_ = ask(started(), wire.OPT_GO, text("x" * 4096) + bytes(2))
    assert len(words) <= wire.MAX_STRING


def test_cut_messages_are_text_still() -> None:
    # Cut at 4096 bytes, the last character has two bytes.
    name = "x" + "é" * 2047
    (_, _, words), *_ = ask(started(), wire.OPT_GO, text(name) + bytes(2))
    words.decode()


@pytest.mark.parametrize("name", [b"nowhere", b"\xff", b"a\0b", b"x" * 5000])
def test_export_name_has_no_error_reply(name: bytes) -> None:
    handshake = started()
    handshake.receive(option_bytes(wire.OPT_EXPORT_NAME, name))
    assert handshake.outgoing() == b""
    assert handshake.state == ENDED
    assert handshake.problem


# --- shapes of replies --------------------------------------------------------------------------


def test_shapes_are_agreed_on_once() -> None:
    handshake = started()
    assert acknowledged(ask(handshake, wire.OPT_STRUCTURED_REPLY))
    assert refusal(ask(handshake, wire.OPT_STRUCTURED_REPLY)) == wire.REP_ERR_INVALID
    assert acknowledged(ask(handshake, wire.OPT_EXTENDED_HEADERS))
    assert refusal(ask(handshake, wire.OPT_EXTENDED_HEADERS)) == wire.REP_ERR_INVALID
    asked = ask(handshake, wire.OPT_STRUCTURED_REPLY)
    assert refusal(asked) == wire.REP_ERR_EXT_HEADER_REQD
    ask(handshake, wire.OPT_GO, go_data(""))
    assert handshake.choice is not None
    assert handshake.choice.mode == EXTENDED


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ([], 0),
        ([wire.OPT_STRUCTURED_REPLY], wire.FLAG_SEND_DF),
        ([wire.OPT_EXTENDED_HEADERS], wire.FLAG_SEND_DF),
    ],
)
def test_what_flags_an_export_has_depends_on_the_shape(options: list[int], flags: int) -> None:
    handshake = started()
    for option in options:
        assert acknowledged(ask(handshake, option))
    replies = ask(handshake, wire.OPT_GO, go_data("disk"))
    (told,) = [data for _, kind, data in replies if kind == 3 and data[:2] == b"\0\0"]
    assert int.from_bytes(told[-2:], "big") == FLAGS | wire.FLAG_HAS_FLAGS | flags


def test_status_payloads_are_offered_with_contexts_only() -> None:
    handshake = started()
    ask(handshake, wire.OPT_EXTENDED_HEADERS)
    ask(handshake, wire.OPT_SET_META_CONTEXT, context_data("disk", ["base:allocation"]))
    told = [
        int.from_bytes(data[-2:], "big")
        for name in ("disk", "")
        for _, kind, data in ask(handshake, wire.OPT_INFO, go_data(name))
        if kind == 3 and data[:2] == b"\0\0"
    ]
    assert [bool(flags & wire.FLAG_BLOCK_STATUS_PAYLOAD) for flags in told] == [True, False]


# --- metadata contexts --------------------------------------------------------------------------


def contexts_of(replies: Replies) -> dict[str, int]:
    assert acknowledged(replies)
    found = [data for _, kind, data in replies if kind == wire.REP_META_CONTEXT]
    return {data[4:].decode(): int.from_bytes(data[:4], "big") for data in found}


@pytest.mark.parametrize(
    ("queries", "names"),
    [
        ([], DISK.contexts),
        (["base:"], ["base:allocation"]),
        (["base:allocation"], ["base:allocation"]),
        (["qemu:"], DISK.contexts[1:]),
        (["qemu:dirty-bitmap:"], DISK.contexts[2:]),
        (["qemu:dirty-bitmap:b1", "base:"], ["base:allocation", "qemu:dirty-bitmap:b1"]),
        (["base:nothing"], []),
        (["qemu:dirty-bitmap:none", "x-test:", "", ":"], []),
        (["base:allocation"] * 5, ["base:allocation"]),
    ],
)
def test_listing_contexts(queries: list[str], names: Sequence[str]) -> None:
    handshake = started()
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    found = contexts_of(ask(handshake, wire.OPT_LIST_META_CONTEXT, context_data("disk", queries)))
    assert list(found) == list(names)
    assert set(found.values()) <= {0}


@pytest.mark.parametrize(
    ("queries", "names"),
    [
        ([], []),
        (["base:"], []),
        (["qemu:dirty-bitmap:"], []),
        (["base:allocation"] * 3, ["base:allocation"]),
        (list(DISK.contexts), DISK.contexts),
        ([BITMAP, "base:nothing"], [BITMAP]),
    ],
)
def test_choosing_contexts(queries: list[str], names: Sequence[str]) -> None:
    handshake = started()
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    found = contexts_of(ask(handshake, wire.OPT_SET_META_CONTEXT, context_data("disk", queries)))
    assert list(found) == list(names)
    assert len(set(found.values())) == len(names)
    ask(handshake, wire.OPT_GO, go_data("disk"))
    assert handshake.choice is not None
    assert handshake.choice.contexts == {number: name for name, number in found.items()}


def test_contexts_are_of_one_export_and_the_last_choice_counts() -> None:
    handshake = started()
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    ask(handshake, wire.OPT_SET_META_CONTEXT, context_data("disk", [BITMAP]))
    ask(handshake, wire.OPT_SET_META_CONTEXT, context_data("disk", ["base:allocation"]))
    ask(handshake, wire.OPT_LIST_META_CONTEXT, context_data("disk", []))
    ask(handshake, wire.OPT_GO, go_data("disk"))
    assert handshake.choice is not None
    assert list(handshake.choice.contexts.values()) == ["base:allocation"]


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_contexts_of_another_export_do_not_count(name: str) -> None:
    handshake = started()
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    ask(handshake, wire.OPT_SET_META_CONTEXT, context_data("disk", [BITMAP]))
    if name == "nowhere":  # a choice that is refused takes back the one before
        asked = ask(handshake, wire.OPT_SET_META_CONTEXT, context_data(name, [BITMAP]))
        assert refusal(asked) == wire.REP_ERR_UNKNOWN
        name = "disk"
    ask(handshake, wire.OPT_GO, go_data(name))
    assert handshake.choice is not None
    assert handshake.choice.contexts == {}


@pytest.mark.parametrize("option", [wire.OPT_LIST_META_CONTEXT, wire.OPT_SET_META_CONTEXT])
@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (context_data("nowhere", ["base:"]), wire.REP_ERR_UNKNOWN),
        (b"", wire.REP_ERR_INVALID),
        (text("disk"), wire.REP_ERR_INVALID),
        (text("disk") + struct.pack(">I", 1), wire.REP_ERR_INVALID),
        (text("disk") + struct.pack(">I", 0xFFFFFFFF) + text("base:"), wire.REP_ERR_INVALID),
        (text("disk") + struct.pack(">I", 1) + text("base:")[:-1], wire.REP_ERR_INVALID),
        (context_data("disk", ["base:"]) + b"x", wire.REP_ERR_INVALID),
        (context_data("disk", ["base:\0"]), wire.REP_ERR_INVALID),
        (context_data("disk", ["x" * 4097]), wire.REP_ERR_INVALID),
        (text("disk") + struct.pack(">II", 1, 1) + b"\xff", wire.REP_ERR_INVALID),
    ],
)
def test_nonsense_in_queries(option: int, data: bytes, kind: int) -> None:
    handshake = started()
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    assert refusal(ask(handshake, option, data)) == kind
    assert handshake.state == HAGGLING


@pytest.mark.parametrize("option", [wire.OPT_LIST_META_CONTEXT, wire.OPT_SET_META_CONTEXT])
def test_contexts_need_structured_replies(option: int) -> None:
    asked = ask(started(), option, context_data("disk", []))
    assert refusal(asked) == wire.REP_ERR_INVALID


def test_a_client_chooses_no_more_contexts_than_it_is_worth() -> None:
    names = [f"qemu:dirty-bitmap:{number}" for number in range(200)]
    offers = Shelf(Offer(name="", size=1, flags=0, contexts=names))
    handshake = started(offers=offers)
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    found = contexts_of(ask(handshake, wire.OPT_SET_META_CONTEXT, context_data("", names)))
    assert len(found) == engine.CONTEXTS_MAX


# --- TLS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [*sorted(wire.OPTION_NAMES), 77])
def test_nothing_without_tls_where_it_is_required(option: int) -> None:
    handshake = started(tls=TLS_REQUIRED)
    handshake.receive(option_bytes(option))
    said = everything(handshake)
    if option == wire.OPT_EXPORT_NAME:
        assert (handshake.state, said) == (ENDED, b"")
    elif option == wire.OPT_ABORT:
        assert (handshake.state, acknowledged(parsed(said))) == (ENDED, True)
    elif option == wire.OPT_STARTTLS:
        assert (handshake.state, acknowledged(parsed(said))) == (STARTTLS, True)
    else:
        assert refusal(parsed(said)) == wire.REP_ERR_TLS_REQD
        assert handshake.state == HAGGLING


def test_tls_that_is_not_there() -> None:
    assert refusal(ask(started(), wire.OPT_STARTTLS)) == wire.REP_ERR_POLICY


def test_negotiation_begins_anew_behind_tls() -> None:
    handshake = started(tls=engine.TLS_OFFERED)
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    ask(handshake, wire.OPT_SET_META_CONTEXT, context_data("disk", [BITMAP]))
    ask(handshake, wire.OPT_STARTTLS)
    assert handshake.state == STARTTLS
    handshake.secured()
    assert refusal(ask(handshake, wire.OPT_STARTTLS)) == wire.REP_ERR_INVALID
    ask(handshake, wire.OPT_GO, go_data("disk"))
    assert handshake.choice is not None
    assert handshake.choice.mode == SIMPLE
    assert handshake.choice.contexts == {}


def test_structured_replies_can_be_agreed_on_again_behind_tls() -> None:
    handshake = started(tls=engine.TLS_OFFERED)
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    ask(handshake, wire.OPT_STARTTLS)
    handshake.secured()
    assert acknowledged(ask(handshake, wire.OPT_STRUCTURED_REPLY))
    ask(handshake, wire.OPT_GO, go_data("disk"))
    assert handshake.choice is not None
    assert handshake.choice.mode == STRUCTURED


@pytest.mark.parametrize("length", [1, 16, 1000])
def test_plain_text_behind_the_request_for_tls_is_an_attack(length: int) -> None:
    handshake = started(tls=TLS_REQUIRED)
    injected = (option_bytes(wire.OPT_GO, go_data("disk")) * 100)[:length]
    handshake.receive(option_bytes(wire.OPT_STARTTLS) + injected)
    assert handshake.state == ENDED
    assert "plain text" in handshake.problem
    assert handshake.rest in (b"", injected)
    assert everything(handshake) == b""


# --- floods -------------------------------------------------------------------------------------


def test_a_server_that_stops_says_so() -> None:
    handshake = started()
    handshake.shutting_down = True
    assert refusal(ask(handshake, wire.OPT_LIST)) == wire.REP_ERR_SHUTDOWN
    assert refusal(ask(handshake, wire.OPT_GO, go_data("disk"))) == wire.REP_ERR_SHUTDOWN
    assert acknowledged(ask(handshake, wire.OPT_ABORT))


def test_options_are_counted() -> None:
    handshake = started()
    handshake.receive(option_bytes(99) * engine.OPTIONS_MAX)
    assert handshake.state == HAGGLING
    assert len(parsed(everything(handshake))) == engine.OPTIONS_MAX
    handshake.receive(option_bytes(99))
    assert handshake.state == ENDED


def test_long_options_are_skipped_without_being_kept() -> None:
    handshake = started()
    length = engine.OPTION_LENGTH_MAX + 1
    handshake.receive(option_bytes(wire.OPT_LIST, length=length))
    assert refusal(parsed(everything(handshake))) == wire.REP_ERR_TOO_BIG
    for _ in range(length // 1000):
        handshake.receive(bytes(1000))
        assert handshake.rest == b""
    handshake.receive(bytes(length % 1000) + option_bytes(wire.OPT_ABORT))
    assert acknowledged(parsed(everything(handshake)))


def test_the_longest_option_that_is_looked_at() -> None:
    data = context_data("disk", ["y" * 1000] * 60)
    data += bytes(engine.OPTION_LENGTH_MAX - len(data))
    handshake = started()
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    assert refusal(ask(handshake, wire.OPT_SET_META_CONTEXT, data)) == wire.REP_ERR_INVALID


@pytest.mark.parametrize("option", [wire.OPT_LIST, 99])
@pytest.mark.parametrize("length", [engine.OPTION_SKIP_MAX + 1, 0xFFFFFFFF])
def test_options_that_nobody_would_send_end_it(option: int, length: int) -> None:
    handshake = started()
    handshake.receive(option_bytes(option, length=length))
    assert handshake.state == ENDED


def test_a_long_option_is_no_way_around_tls() -> None:
    handshake = started(tls=TLS_REQUIRED)
    handshake.receive(option_bytes(wire.OPT_GO, go_data("disk") + bytes(70_000)))
    assert handshake.choice is None
    assert handshake.state in (HAGGLING, ENDED)


def test_a_flood_of_questions_is_answered_piece_by_piece() -> None:
    """4 KiB that ask for gigabytes: no more than one answer is in memory."""
    offers = Shelf(*(Offer(name=f"export {n}", size=n, flags=0) for n in range(20_000)))
    handshake = started(offers=offers)
    handshake.receive(option_bytes(wire.OPT_LIST) * engine.OPTIONS_MAX)
    longest = total = 0
    for _ in range(3):
        piece = handshake.outgoing()
        longest = max(longest, len(piece))
        total += len(piece)
    assert total > longest, "the flood is not answered in pieces"
    assert longest < 2_000_000


def test_many_queries_take_bounded_time() -> None:
    names = [f"qemu:dirty-bitmap:{number}" for number in range(1000)]
    offers = Shelf(Offer(name="", size=1, flags=0, contexts=names))
    handshake = started(offers=offers)
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    queries = ["a:"] * 10_000
    started_at = time.monotonic()
    assert acknowledged(ask(handshake, wire.OPT_LIST_META_CONTEXT, context_data("", queries)))
    assert time.monotonic() - started_at < 1
