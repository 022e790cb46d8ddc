# SPDX-License-Identifier: Apache-2.0
"""Numbers as C reads them, and sizes as qemu-img's users write them."""

from __future__ import annotations

import pytest

from blocklayer.base.errors import InvalidArgument
from blocklayer.cli.failures import Failure
from blocklayer.cli.numbers import integer_argument, number, size_argument
from blocklayer.cli.objects import check_objects, list_objects


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("10", 10),
        ("0x10", 16),
        ("010", 8),
        ("+3", 3),
        (" 7", 7),
        ("2147483647", 2**31 - 1),
    ],
)
def test_integers(text: str, value: int) -> None:
    assert integer_argument(text, "count") == value


@pytest.mark.parametrize(
    "text",
    ["", "x", "-1", "08", "1k", "0x", "2147483648", "1.0", "1_0", "0b1", "0o7", "++1", "\u0663"],
)
def test_wrong_integers(text: str) -> None:
    with pytest.raises(Failure, match=r"^Invalid count specified$"):
        integer_argument(text, "count")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.M", 1 << 20), ("1.", 1), ("+1k", 1024), (" 1k", 1024), ("0x10k", 16384)],
)
def test_sizes(text: str, value: int) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    "text", ["1k ", ".5k", "1.5b", "1 k", ".", "+", "0x", "0xk", "1e3", "k", "--1"]
)
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(Failure, match=r"Invalid size specified\. You may use k"):
        size_argument(text, "size")


def test_limits() -> None:
    assert size_argument("512", "bs", least=1, most=512) == 512
    for text in ("0", "513"):
        with pytest.raises(Failure, match="Must be between 1 and 512"):
            size_argument(text, "bs", least=1, most=512)


@pytest.mark.parametrize(
    "definition",
    [
        "secret,id=a,data=x",
        "qom-type=secret,id=a,data=YWJj,format=base64",
        '{"qom-type": "secret", "id": "a", "data": "x"}',
        "throttle-group,id=a,limits.iops-total=5",
        "throttle-group,id=a,x-iops-total=5",
        "authz-simple,id=a,identity=x",
        "tls-creds-anon,id=a,dir=x,endpoint=client",
    ],
)
def test_objects(definition: str) -> None:
    check_objects([definition])
    with pytest.raises(InvalidArgument, match="duplicate property 'a'"):
        check_objects([definition, definition])


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        ("", "'qom-type' is missing"),
        ("foo,id=a", "does not accept value 'foo'"),
        ("secret", "'id' is missing"),
        ("secret,id=1a,data=x", "expects an identifier"),
        ("secret,id=a,colour=red", "'colour' is unexpected"),
        ("secret,id=a", "Either 'file' or 'data'"),
        ("secret,id=a,data=x,file=y", "mutually exclusive"),
        ("secret,id=a,data=x,format=foo", "does not accept value 'foo'"),
        ('{"qom-type": 1', "JSON parse error"),
    ],
)
def test_wrong_objects(definition: str, words: str) -> None:
    with pytest.raises((Failure, InvalidArgument), match=words):
        check_objects([definition])


def test_help_about_objects() -> None:
    assert list_objects(["secret,id=a,data=x"]) is None
    assert "  secret" in (list_objects(["help"]) or "").splitlines()
    assert "  keyid=<value>" in (list_objects(["secret,help"]) or "").splitlines()
