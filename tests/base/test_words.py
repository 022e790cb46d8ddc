# SPDX-License-Identifier: Apache-2.0
"""Errors, records, layouts, options, progress."""

from __future__ import annotations

import copy
import errno
import pickle

import pytest

from blocklayer.base import errors
from blocklayer.base.errors import (
    BlocklayerError,
    Cancelled,
    CreateError,
    InvalidArgument,
    IoError,
    LockError,
    OpenError,
    TruncatedImage,
    os_reason,
)
from blocklayer.base.layout import Layout, u8, u16, u32, u64
from blocklayer.base.options import OPTIONS_DEPTH_MAX, nest, parse_bool, split_options
from blocklayer.base.progress import CancelToken, Progress, Reporter
from blocklayer.base.record import Record, fresh

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, BlocklayerError)
]

# --- errors ---


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_what_the_edges_need(kind: type[BlocklayerError]) -> None:
    fields = ["{braces} and %s", "a file"][: 1 + ("filename" in kind._fields)]
    error = kind(*fields)
    assert "{braces} and %s" in str(error)
    assert error.errno in errno.errorcode
    assert kind.exit_code == 1
    assert kind.qmp_class
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is kind
        assert str(other) == str(error)
    assert error != kind(*fields)
    assert len({error, error}) == 1


def test_texts_are_those_of_the_field() -> None:
    assert str(OpenError("No such file", "a")) == "Could not open 'a': No such file"
    assert str(CreateError("too large", "a")) == "a: too large"
    assert str(LockError("Failed", "a")).endswith("Is another process using the image [a]?")
    assert str(TruncatedImage("short", "a")) == "short"


def test_errors_of_the_system() -> None:
    cause = OSError(errno.ENOSPC, "No space left on device")
    error = IoError.from_os(cause, "write", "a file", 10, 20)
    assert (error.code, error.errno) == (errno.ENOSPC, errno.ENOSPC)
    assert str(error) == (
        "write failed on 'a file' at offset 10, length 20: No space left on device"
    )
    assert error.reason == os_reason(error) == os_reason(cause) == "No space left on device"
    error = IoError.from_os(cause, "resize", "a file", 10)
    assert str(error).startswith("resize failed on 'a file' at offset 10: ")
    assert str(IoError.from_os(OSError("odd"), "flush", "f")) == "flush failed on 'f': odd"
    assert IoError.from_os(OSError("odd"), "flush", "f").errno == errno.EIO
    assert OpenError("x", "f", errno.ENOENT).errno == errno.ENOENT


# --- records ---


class Point(Record, frozen=True):
    x: int
    y: int = 0


class Basket(Record):
    name: str
    things: list[int] = fresh(factory=list)


class Named(Point, frozen=True):
    name: str = "none"


def test_records_are_plain_data() -> None:
    assert Point(1, 2) == Point(y=2, x=1)
    assert Point(1) != Point(2)
    assert {Point(1, 2): "a"}[Point(1, 2)] == "a"
    assert repr(Point(1)) == "Point(x=1, y=0)"
    assert Point(1).replace(y=5).as_dict() == {"x": 1, "y": 5}
    assert Named(1, name="n").as_dict() == {"x": 1, "y": 0, "name": "n"}
    assert Named(1) != Point(1)


def test_defaults_are_made_anew() -> None:
    one, two = Basket("one"), Basket("two")
    one.things.append(1)
    assert two.things == []
    one.name = "changed"
    assert one.name == "changed"


def test_records_refuse_what_they_do_not_have() -> None:
    with pytest.raises(TypeError, match="needs a value for 'x'"):
        Point()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="too many"):
        Point(1, 2, 3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="too many"):
        Point(1, x=2)  # type: ignore[misc]
    with pytest.raises(TypeError, match="no field z"):
        Point(1, z=2)  # type: ignore[call-arg]
    with pytest.raises(AttributeError, match="immutable"):
        Point(1).x = 2  # type: ignore[misc]


# --- layouts ---


class Little(Layout, byte_order="<"):
    magic = u32("magic")
    small = u8("things")
    middle = u16("bytes")
    mask = u64("mask")


class Big(Layout, byte_order=">"):
    value = u32("bytes")


def test_a_layout_is_what_its_fields_say() -> None:
    assert Little.SIZE == 15
    assert [(f.name, f.offset, f.size) for f in Little.FIELDS] == [
        *(("magic", 0, 4), ("small", 4, 1), ("middle", 5, 2), ("mask", 7, 8)),
    ]
    assert Little.offset_of("middle") == 5
    packed = Little(magic=0x01020304, small=5, middle=0x0607, mask=1).pack()
    assert packed == bytes([4, 3, 2, 1, 5, 7, 6, 1, 0, 0, 0, 0, 0, 0, 0])
    assert Big(value=1).pack() == b"\0\0\0\1"
    again = Little.unpack_from(b"xx" + packed, 2)
    assert again == Little(magic=0x01020304, small=5, middle=0x0607, mask=1)
    assert again != again.replace(small=6)
    assert again.as_dict() == {"magic": 0x01020304, "small": 5, "middle": 0x0607, "mask": 1}
    assert "small=0x5" in repr(again)


def test_fields_describe_themselves() -> None:
    described = list(Little(small=7).describe())
    assert [(info.name, info.unit, info.value) for info in described][1] == ("small", "things", 7)


def test_values_have_to_fit() -> None:
    for values in ({"small": 256}, {"small": -1}, {"mask": 1 << 64}):
        with pytest.raises(ValueError, match="does not fit"):
            Little(**values)
    with pytest.raises(TypeError, match="no field odd"):
        Little(odd=1)
    with pytest.raises(TypeError):
        hash(Little())


# --- options ---


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        ("a=1", [("a", "1")]),
        ("a=1,b=2,a=3", [("a", "1"), ("b", "2"), ("a", "3")]),
        ("flag", [("flag", "on")]),
        ("file=a,,b,x=", [("file", "a,b"), ("x", "")]),
        ("a=b=c", [("a", "b=c")]),
        (",a=1,", [("a", "1")]),
        ("a=,,,,", [("a", ",,")]),
    ],
)
def test_option_strings(text: str, pairs: list[tuple[str, str]]) -> None:
    assert split_options(text) == pairs


def test_nesting() -> None:
    assert nest({"a.b.c": 1, "a.b.d": 2, "e": {"f.g": 3}}) == {
        "a": {"b": {"c": 1, "d": 2}},
        "e": {"f": {"g": 3}},
    }
    assert nest({"a": {"b": 1}, "a.c": 2}) == {"a": {"b": 1, "c": 2}}
    assert nest({"a.c": 2, "a": {"b": 1}}) == {"a": {"c": 2, "b": 1}}
    assert nest({"a.b.x": 1, "a": {"b": {"y": 2}}}) == {"a": {"b": {"x": 1, "y": 2}}}


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        ({"a": 1, "a.b": 2}, "Cannot mix 'a'"),
        ({"a.b": 2, "a": 1}, "given twice"),
        ({"a.b": 1, "a": {"b": 2}, "c": 1}, "given twice"),
        ({".".join("x" * (OPTIONS_DEPTH_MAX + 1)): 1}, "nested deeper"),
    ],
)
def test_options_that_contradict_each_other(flat: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        nest(flat)


def test_trees_of_any_depth_are_refused_in_time() -> None:
    tree: dict[str, object] = {}
    for _ in range(OPTIONS_DEPTH_MAX + 5):
        tree = {"x": tree}
    with pytest.raises(InvalidArgument, match="nested deeper"):
        nest(tree)


def test_switches() -> None:
    for value in ("on", "yes", "true", "y", True):
        assert parse_bool(value, "x") is True
    for value in ("off", "no", "false", "n", False):
        assert parse_bool(value, "x") is False
    wrong: list[object] = ["ON", "1", 1, 0, None, "", []]
    for each in wrong:
        with pytest.raises(InvalidArgument, match="'x' expects 'on' or 'off'"):
            parse_bool(each, "x")


# --- progress ---


def test_progress_runs_forward_and_ends() -> None:
    seen: list[Progress] = []
    reporter = Reporter("copy", 100, seen.append)
    reporter.advance(30)
    reporter.advance(90)
    reporter.finish()
    assert [each.done for each in seen] == [0, 30, 100, 100]
    assert [each.fraction for each in seen] == [0.0, 0.3, 1.0, 1.0]
    assert Progress("x", 0, 0).fraction == 1.0


def test_whoever_is_asked_to_stop_stops() -> None:
    token = CancelToken()
    reporter = Reporter("copy", 100, cancel=token)
    reporter.advance(10)
    assert not token.cancelled
    token.cancel()
    for action in (reporter.check, lambda: reporter.advance(1), reporter.finish):
        with pytest.raises(Cancelled, match="copy was cancelled"):
            action()
    with pytest.raises(Cancelled):
        Reporter("another", 1, cancel=token)
