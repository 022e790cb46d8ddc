"""Streams of JSON, wrong ones too, given to QEMU's daemon as well: the same answers in order."""

from __future__ import annotations

import json
import random
import re
import subprocess

import pytest

from blocklayer.qmp.daemon import Daemon
from blocklayer.qmp.dispatch import Session
from blocklayer.qmp.framing import Splitter
from tests.support import needs

pytestmark = needs("qemu-storage-daemon")

NEGOTIATE = b'{"execute": "qmp_capabilities"}\n'
END = b'\xff\n{"execute": "quit", "id": "end"}\n'


def qemus(stream: bytes) -> list[str]:
    """What QEMU's daemon answers: errors' words, or that there was a return."""
    done = subprocess.run(
        ["qemu-storage-daemon", "--chardev", "stdio,id=m", "--monitor", "m"],
        input=NEGOTIATE + stream + END,
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    lines = [json.loads(line) for line in done.stdout.decode(errors="replace").splitlines()]
    return [words(each) for each in lines[2:]]


def ours(stream: bytes) -> list[str]:
    daemon = Daemon()
    try:
        session = Session(daemon.context)
        splitter = Splitter()
        data = NEGOTIATE + stream + END
        answers = [session.answer(each) for each in splitter.feed(data)]
    finally:
        daemon.close()
    return [words(each) for each in answers[1:]]


def words(answer: dict[str, object]) -> str:
    error = answer.get("error")
    return str(error["desc"]) if isinstance(error, dict) else f"done {answer.get('id')}"


def agree(stream: bytes) -> None:
    assert ours(stream) == qemus(stream), stream


PIECES = [
    *(b"{ } [ ] : , 1 -1 0 01 1.5 -0.5 1e5 1e+5 1. -x 1.5.2 true false null nul True a_b".split()),
    b'"a"', b'"a', b"'a'", b"'", b'"', b'"\\"', b"'\\''", b'"\\x"', b'"\\u00e9"', b'"\\u12"',
    b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\ud800\\u0041"', b'"\\ufffe"', b'"\\u0000"',
    b'"\xc3\xa9"', b'"\xc3("', b'"\xff"', b'"a\tb"', b"\xff", b"\xc3", b"@", b"%", b"%d", b"%s",
    b"\0", b"\n", b" ", b"\t", b"\r", b"\x0b", b"+", b"_", b"#", b"/", b"\\",
    b'{"execute": "query-jobs"}', b'{"execute": "query-jobs", "id": 5}', b'{"execute": 1}',
    b'{"a": 1, "a": 2}', b'{"a": 1, "a" 2}', b"[1 2]", b"[1,]", b"{1: 2}", b"{[]: 2}", b'{"a"}',
]  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
def test_each_piece_alone(piece: bytes) -> None:
    agree(piece + b"\n")


HUGE = re.compile(rb"e\+?\d{3}")
"""Numbers that may be infinite, which QEMU repeats in answers although no JSON can say it."""


@pytest.mark.slow
def test_pieces_in_random_order(rng: random.Random) -> None:
    for _ in range(40):
        stream = b"".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 60)))
        if not HUGE.search(stream):
            agree(stream)
