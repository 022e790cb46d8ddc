"""Arguments against declarations: QEMU's words, the order of its looking, both spellings."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from blocklayer.qmp.commands import all_commands
from blocklayer.qmp.schema import bitmaps, blockdev, exports, jobs, nodes, objects, transactions
from blocklayer.qmp.types import Members, QmpError
from blocklayer.qmp.validate import checked, convert, type_of

FILE = {"driver": "file", "filename": "x"}


def words(value: Any, declared: Any, *, spelled: bool = False) -> str:
    with pytest.raises(QmpError) as caught:
        convert(value, declared, spelled=spelled)
    return str(caught.value)


WRONG: list[tuple[Any, Any, str]] = [
    (blockdev.Blockdevs, {}, "Parameter 'driver' is missing"),
    (blockdev.Blockdevs, {"driver": 1}, "Invalid parameter type for 'driver', expected: string"),
    (blockdev.Blockdevs, {"driver": "x"}, "Parameter 'driver' does not accept value 'x'"),
    (blockdev.Blockdevs, {"driver": "raw"}, "Parameter 'file' is missing"),
    (
        blockdev.Blockdevs,
        {"driver": "raw", "file": {"driver": "raw", "file": {"driver": "file"}}},
        "Parameter 'file.file.filename' is missing",
    ),
    (
        blockdev.Blockdevs,
        {"driver": "qed", "file": FILE, "backing": 1},
        "Invalid parameter type for 'backing', expected: BlockdevRefOrNull",
    ),
    (
        blockdev.Blockdevs,
        {"driver": "raw", "file": None},
        "Invalid parameter type for 'file', expected: BlockdevRef",
    ),
    (
        bitmaps.BitmapMerge,
        {"node": "n", "target": "t", "bitmaps": ["a", {"node": "n"}]},
        "Parameter 'bitmaps[1].name' is missing",
    ),
    (
        transactions.Transaction,
        {"actions": [{"type": "abort", "data": {"x": 1}}]},
        "Parameter 'actions[0].data.x' is unexpected",
    ),
    (jobs.ChangeMirror, {"id": "j", "type": "x"}, "Parameter 'type' does not accept value 'x'"),
    (nodes.BlockResize, {"size": True}, "Invalid parameter type for 'size', expected: integer"),
    (nodes.BlockResize, {"size": 2**63}, "Invalid parameter type for 'size', expected: integer"),
    (
        nodes.WriteThreshold,
        {"node-name": "n", "write-threshold": float(2**64)},
        "Parameter 'write-threshold' expects uint64",
    ),
    (
        exports.NbdServerStart,
        {"addr": {"type": "unix", "data": {"path": "x"}}, "max-connections": 2**32},
        "Parameter 'max-connections' expects uint32_t",
    ),
]


@pytest.mark.parametrize(("declared", "value", "expected"), WRONG)
def test_what_is_wrong_is_told_in_qemus_words(declared: Any, value: Any, expected: str) -> None:
    assert words(value, declared) == expected


def test_a_backing_file_of_null_is_not_one_that_is_left_out() -> None:
    without = convert({"driver": "qed", "file": FILE}, blockdev.Blockdevs)
    nothing = convert({"driver": "qed", "file": FILE, "backing": None}, blockdev.Blockdevs)
    assert "backing" not in msgspec.to_builtins(without)
    assert msgspec.to_builtins(nothing)["backing"] is None


def test_strings_of_a_command_line_become_what_is_declared() -> None:
    options = {
        "driver": "blkdebug",
        "read-only": "on",
        "image": {"driver": "raw", "size": "512", "file": "f"},
        "inject-error": {"0": {"errno": "0x5", "once": "yes"}, "1": {"errno": "-1"}},
    }
    node = convert(options, blockdev.Blockdevs, spelled=True)
    assert node.read_only is True
    assert node.image.size == 512
    assert [rule.errno for rule in node.inject_error] == [5, -1]
    create = {"driver": "file", "filename": "x", "size": "4k"}
    assert convert(create, nodes.CreateFile, spelled=True).size == 4096


@pytest.mark.parametrize(
    ("declared", "value", "expected"),
    [
        (
            blockdev.Blockdevs,
            {"driver": "null-co", "size": "5k"},
            "Parameter 'size' expects integer",
        ),
        (
            blockdev.Blockdevs,
            {"driver": "null-co", "read-only": "maybe"},
            "Parameter 'read-only' expects 'on' or 'off'",
        ),
        (
            nodes.CreateFile,
            {"driver": "file", "filename": "x", "size": "lots"},
            "Parameter 'size' expects size",
        ),
        (
            exports.NbdExport,
            {"type": "nbd", "id": "e", "node-name": "n", "bitmaps": {"0": "a", "2": "b"}},
            "Parameter 'bitmaps.1' missing",
        ),
        (
            blockdev.Blockdevs,
            {"driver": "null-co", "size": "9" * 1000},
            "Parameter 'size' expects integer",
        ),
    ],
)
def test_strings_that_are_wrong(declared: Any, value: Any, expected: str) -> None:
    assert words(value, declared, spelled=True) == expected


# What the walk accepts msgspec must accept too, and nothing may escape but QmpError.


def some_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind == 6:
        return [some_value(rng, depth + 1) for _ in range(rng.randrange(3))]
    if kind >= 7:
        names = ["driver", "file", "node-name", "size", "type", "data", "id", "device", "x"]
        return {rng.choice(names): some_value(rng, depth + 1) for _ in range(rng.randrange(5))}
    texts = ["raw", "qed", "file", "null-co", "nbd", "unix", "abort", "full", "", "on", "5"]
    return [None, True, rng.randrange(-5, 2**40), 2**64, rng.random(), rng.choice(texts)][kind]


def mutated(rng: random.Random, value: Any) -> Any:
    """`value` with something in it changed."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        return {**value, name: mutated(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        return [*value[:-1], mutated(rng, value[-1])]
    return some_value(rng)


RIGHT: list[tuple[Any, Any]] = [
    (blockdev.Blockdevs, {"driver": "qed", "file": FILE, "backing": None, "cache": {}}),
    (blockdev.Blockdevs, {"driver": "blkdebug", "image": FILE, "inject-error": [{"errno": 5}]}),
    (nodes.BlockdevReopen, {"options": [{"driver": "raw", "file": "f", "offset": 5}]}),
    (transactions.Transaction, {"actions": [{"type": "abort", "data": {}}], "properties": {}}),
    (jobs.BlockdevMirror, {"device": "a", "target": "b", "sync": "full", "speed": 5}),
    (bitmaps.BitmapMerge, {"node": "n", "target": "t", "bitmaps": ["a", {"node": "n"}]}),
    (exports.NbdServerStart, {"addr": {"type": "inet", "data": {"host": "", "port": ""}}}),
    (objects.Objects, {"qom-type": "authz-list", "id": "a", "rules": [{"match": "x"}]}),
]


def test_random_changes_are_accepted_or_refused_in_words(rng: random.Random) -> None:
    accepted = 0
    for _ in range(5000):
        declared, value = rng.choice(RIGHT)
        for _ in range(rng.randrange(1, 4)):
            value = mutated(rng, value)
        spelled = rng.random() < 0.3
        refusal = None
        try:
            plain = checked(value, declared, spelled=spelled)
        except QmpError as error:
            refusal = str(error)
        if refusal is None:
            accepted += 1
            msgspec.convert(plain, declared)
        else:
            assert refusal.startswith(("Parameter '", "Invalid parameter type for '"))
    assert accepted > 50


def nested(cls: Any) -> Iterator[Any]:
    """Objects that an argument object has in it, itself first; each once."""
    seen: list[Any] = []
    pending = [cls]
    while pending:
        each = pending.pop()
        if each in seen or not (isinstance(each, type) and issubclass(each, Members)):
            continue
        seen.append(each)
        yield each
        for field in type_of(each).fields:  # type: ignore[attr-defined]
            pending += _classes_in(field.type)


def _classes_in(kind: inspect.Type) -> list[Any]:
    if isinstance(kind, inspect.Metadata):
        return _classes_in(kind.type)
    if isinstance(kind, inspect.UnionType):
        return [cls for each in kind.types for cls in _classes_in(each)]
    if isinstance(kind, inspect.ListType):
        return _classes_in(kind.item_type)
    return [kind.cls] if isinstance(kind, inspect.StructType) else []


def test_every_argument_is_described() -> None:
    from blocklayer.qmp.reference import _classes, member_rows

    silent = []
    for command in all_commands().values():
        for top in _classes(command.arguments):
            for cls in nested(top):
                assert issubclass(cls, Members)
                assert cls.__doc__, cls
                rows = member_rows(cls)
                silent += [f"{cls.__name__}.{row.name}" for row in rows if not row.about]
    assert not sorted(set(silent))
