# SPDX-License-Identifier: Apache-2.0
"""Names of exports: what each means, what is refused, and that shown names open the same export."""

import random

import pytest

from blocklayer.base.errors import BlocklayerError, InvalidArgument
from blocklayer.nbd.uri import (
    DescriptorAddress,
    InetAddress,
    Location,
    UnixAddress,
    VsockAddress,
    address_of,
    parse,
)

MEANINGS: dict[str, Location] = {
    "nbd://host": Location(InetAddress("host", 10809)),
    "nbd://host/": Location(InetAddress("host", 10809)),
    "nbd://": Location(InetAddress("localhost", 10809)),
    "NBD://host:1234/disk": Location(InetAddress("host", 1234), "disk"),
    "nbd+tcp://host/disk": Location(InetAddress("host", 10809), "disk"),
    "nbd://[::1]:99/a/b": Location(InetAddress("::1", 99), "a/b"),
    "nbd://10.0.0.1//disk": Location(InetAddress("10.0.0.1"), "/disk"),
    "nbd://h/a%20b%C3%A9%2F%3F": Location(InetAddress("h"), "a bé/?"),
    "nbd://h/a+b": Location(InetAddress("h"), "a+b"),
    "nbds://host/disk": Location(InetAddress("host"), "disk", True),
    "nbds+tcp://host/disk": Location(InetAddress("host"), "disk", True),
    "nbds://h?tls-certificates=/etc/pki&tls-verify-peer=false": Location(
        InetAddress("h"), "", True, "/etc/pki", None, False
    ),
    "nbds://h?tls-verify-peer=1&tls-hostname=other": Location(
        InetAddress("h"), "", True, None, "other"
    ),
    "nbd+unix:///?socket=/run/s": Location(UnixAddress("/run/s")),
    "nbd+unix://?socket=/run/s": Location(UnixAddress("/run/s")),
    "nbd+unix:///disk?socket=rel%20ative": Location(UnixAddress("rel ative"), "disk"),
    "nbds+unix:///d?socket=/s": Location(UnixAddress("/s"), "d", True),
    "nbd+vsock://3:5/d": Location(VsockAddress(3, 5), "d"),
    "nbd+vsock://3": Location(VsockAddress(3, 10809)),
    "nbd:host:1234": Location(InetAddress("host", 1234)),
    "nbd:host:1234:exportname=a:b=c": Location(InetAddress("host", 1234), "a:b=c"),
    "nbd:[::1]:1234": Location(InetAddress("::1", 1234)),
    "nbd::1234": Location(InetAddress("localhost", 1234)),
    "nbd:unix:/run/s": Location(UnixAddress("/run/s")),
    "nbd:unix:/run/s:exportname=d": Location(UnixAddress("/run/s"), "d"),
}


@pytest.mark.parametrize(("text", "location"), MEANINGS.items(), ids=list(MEANINGS))
def test_meanings(text: str, location: Location) -> None:
    assert parse(text) == location


@pytest.mark.parametrize("text", [t for t in MEANINGS if "tls-" not in t])
def test_what_is_shown_opens_the_same(text: str) -> None:
    assert parse(parse(text).shown) == parse(text)


def test_shown_as_qemu_does() -> None:
    shown = [
        parse(text).shown for text in ("nbd:host:1", "nbd:unix:/s", "nbd:unix:/s:exportname=e")
    ]
    assert shown == ["nbd://host:1", "nbd+unix://?socket=/s", "nbd+unix:///e?socket=/s"]
    assert Location(DescriptorAddress(5), "e").shown == "nbd:fd:5/e"


REFUSED = {
    "nbd://host:99999": "Port out of range",
    "nbd://host:abc": "No valid URL",
    "nbd://host/d#fragment": "fragment",
    "nbd://user@host/": "user names",
    "nbd://host?socket=/s": "'socket'",
    "nbd+unix:///d": "'socket'",
    "nbd+unix:///": "'socket'",
    "nbd+unix://host/?socket=/s": "no other host",
    "nbd+unix:///?socket=": "cannot be the name",
    "nbd+unix:///?socket=/s&colour=red": "no parameter 'colour'",
    "nbd+unix:///?socket=/s&socket=/t": "given twice",
    "nbd+unix:///?socket=/" + "x" * 200: "too long",
    "nbd+unix:///?socket=/a%00b": "cannot be the name",
    "nbd://host/%FF": "not UTF-8",
    "nbd://host/a%00b": "NUL",
    "nbd://host/a b": "characters",
    "nbd://host/a\nb": "characters",
    "nbd://[::1/": "No valid URL",
    "nbd://host?tls-hostname=x": "of 'nbds' alone",
    "nbds://host?tls-verify-peer=maybe": "expects 'on' or 'off'",
    "nbd://h/" + "x" * 4097: "export name too long",
    "nbd+vsock://host": "'host' is no number for 'CID'",
    "nbd+ssh://host": "not a scheme",
    "nbd:host": "error parsing address 'host'",
    "nbd:host:x": "no number for 'port'",
    "nbd:host:70000": "too large",
    "nbd:unix:": "cannot be the name",
}


@pytest.mark.parametrize(("text", "words"), REFUSED.items(), ids=[t[:40] for t in REFUSED])
def test_refusals(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as failure:
        parse(text)
    assert words in str(failure.value)


def test_addresses_as_options() -> None:
    assert address_of({"type": "inet", "host": "h", "port": "5"}) == InetAddress("h", 5)
    assert address_of({"type": "inet", "host": "h", "port": 5}) == InetAddress("h", 5)
    assert address_of({"type": "inet", "host": "h", "ipv6": "on"}) == InetAddress("h", family=6)
    both = {"type": "inet", "host": "h", "ipv4": True, "ipv6": True}
    assert address_of(both) == InetAddress("h")
    assert address_of({"type": "unix", "path": "/s"}) == UnixAddress("/s")
    abstract = {"type": "unix", "path": "s", "abstract": "on"}
    assert address_of(abstract) == UnixAddress("\0s")
    assert address_of({"type": "vsock", "cid": "3", "port": "4"}) == VsockAddress(3, 4)
    assert address_of({"type": "fd", "str": "7"}) == DescriptorAddress(7)


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("text", "expected: object"),
        ({}, "'type' is missing"),
        ({"type": "carrier pigeon"}, "does not accept value 'carrier pigeon'"),
        ({"type": []}, "does not accept value"),
        ({"type": "inet"}, "'host' is missing"),
        ({"type": "inet", "host": ["h"]}, "expected: string"),
        ({"type": "inet", "host": "h", "port": True}, "no number"),
        ({"type": "unix", "path": "/s", "host": "h"}, "'host' is unexpected"),
        ({"type": "unix", "path": "/s", "abstract": "on", "tight": "off"}, "'tight'"),
        ({"type": "fd", "str": "name"}, "no number"),
    ],
)
def test_wrong_addresses(server: object, words: str) -> None:
    with pytest.raises(InvalidArgument) as failure:
        address_of(server)
    assert words in str(failure.value)


def test_noise_gives_errors_of_ours(rng: random.Random) -> None:
    letters = "nbds+unix://?&=%[]:@#/exportname,socket 0123456789é\0\n"
    refused = 0
    for _ in range(3000):
        text = rng.choice(list(MEANINGS))
        for _ in range(rng.randrange(1, 5)):
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice(letters) + text[place + rng.randrange(2) :]
        try:
            parse(parse(text).shown)
        except BlocklayerError:
            refused += 1
    assert refused
