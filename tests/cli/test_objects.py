# SPDX-License-Identifier: Apache-2.0
"""`--object` beside QEMU's tools: what is right, and the words for what is wrong.

The daemon says the same with the option before it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from blocklayer.cli.objects import KINDS
from tests.cli.side_by_side import run_ours, run_theirs
from tests.support import needs

pytestmark = needs("qemu-img", "qemu-nbd", "qemu-storage-daemon")

LINES = r"""
secret,id=s
secret,id=s,data=abc
secret,id=s,data=abc,file=plain
secret,id=s,file=nosuch
secret,id=s,file=emptydir
secret,id=s,data=a!b,format=base64
secret,id=s,data=YWJj,format=base64
secret,id=s,data=YWJ,format=base64
secret,id=s,data=,format=base64
secret,id=s,data=
secret,id=s,file=bad
secret,id=s,file=bad,format=base64
secret,id=s,file=b64,format=base64
secret,id=s,file=plain,format=base64
secret,id=s,data=abc,format=hex
secret,id=s,data=abc,keyid=k
secret,id=s,data=abc,iv=k
secret,id=s,data=YWJj,keyid=k,iv=YWJj,format=base64
secret,id=s,data=abc,frob=1
secret,id=s,data
secret,id=s,,data=a
secret,data=a
id=s,data=a
secret
secret,id=1s,data=a
secret,id=s s,data=a
secret,id=,data=a
secret,id=1s,frob=1
secrets,id=s
secret_keyring,id=s
tls-creds-x509,id=t
tls-creds-x509,id=t,endpoint=server
tls-creds-x509,id=t,endpoint=foo,dir=emptydir
tls-creds-x509,id=t,endpoint=server,dir=nosuch
tls-creds-x509,id=t,dir=nosuch
tls-creds-x509,id=t,endpoint=server,dir=emptydir
tls-creds-x509,id=t,endpoint=server,dir=emptydir,verify-peer=maybe
tls-creds-x509,id=t,endpoint=server,dir=emptydir,sanity-check=maybe
tls-creds-x509,id=t,endpoint=client,dir=emptydir,passwordid=k
tls-creds-psk,id=t
tls-creds-psk,id=t,dir=emptydir,endpoint=server
tls-creds-anon,id=t
tls-creds-anon,id=t,dir=nosuch,endpoint=server
tls-cipher-suites,id=t
tls-cipher-suites,id=t,priority=NORMAL
authz-simple,id=a
authz-simple,id=a,identity=x
authz-simple,id=a,identity=
authz-list,id=a
authz-list,id=a,policy=foo
authz-list,id=a,policy=allow
authz-list,id=a,rules.0.match=x
authz-list,id=a,rules.0.match=x,rules.0.policy=allow
authz-list,id=a,rules.0.match=x,rules.0.policy=foo
authz-list,id=a,rules.0.match=x,rules.0.policy=allow,rules.0.format=re
authz-list,id=a,rules.1.match=x,rules.1.policy=allow
authz-list,id=a,rules.0.match=x,rules.0.policy=allow,rules.0.foo=1
authz-list,id=a,rules=x
authz-list,id=a,rules.x=x
iothread,id=i,poll-max-ns=x
main-loop,id=i
main-loop,id=i,aio-max-batch=-1
main-loop,id=i,thread-pool-max=0
main-loop,id=i,thread-pool-min=65
throttle-group,id=t
throttle-group,id=t,x-bps-total=1000
throttle-group,id=t,x-bps-total=1M
throttle-group,id=t,x-bps-total=-1
throttle-group,id=t,x-bps-total=
throttle-group,id=t,x-bps-total=1.5
throttle-group,id=t,x-bps-total=0x10
throttle-group,id=t,x-bps-total=99999999999999999999
throttle-group,id=t,x-bps-total=1000,x-bps-read=5
throttle-group,id=t,x-iops-total=1000,x-iops-write=5
throttle-group,id=t,x-iops-size=5
throttle-group,id=t,x-iops-size=5,x-bps-total=5
throttle-group,id=t,x-iops-size=-5
throttle-group,id=t,x-iops-size=5,x-iops-read=5
throttle-group,id=t,x-bps-total-max=5
throttle-group,id=t,x-bps-total=10,x-bps-total-max=5
throttle-group,id=t,x-bps-total=10,x-bps-total-max=50,x-bps-total-max-length=0
throttle-group,id=t,x-bps-total=10,x-bps-total-max-length=5
throttle-group,id=t,x-bps-total-max-length=5
throttle-group,id=t,x-bps-total-max-length=-5
throttle-group,id=t,x-bps-total-max-length=0
throttle-group,id=t,x-bps-total-max-length=5000000000
throttle-group,id=t,x-bps-total=10,x-bps-total-max=5000,x-bps-total-max-length=4294967295
throttle-group,id=t,x-bps-total=10,x-bps-total-max=500000000000000000,x-bps-total-max-length=4294967
throttle-group,id=t,x-bps-total=10000000000000000
throttle-group,id=t,x-bps-total=1000000000000000
throttle-group,id=t,x-foo=1
throttle-group,id=t,limits=5
throttle-group,id=t,limits.x=5
throttle-group,id=t,limits.bps-total=5
throttle-group,id=t,limits.bps-total=x
throttle-group,id=t,limits.bps-total=-1
throttle-group,id=t,limits.bps-total=1M
throttle-group,id=t,limits.bps-total=5,limits.bps-read=5
throttle-group,id=t,limits.bps-total=5,x-bps-read=5
throttle-group,id=t,limits.bps-total=5,x-bps-total=7
throttle-group,id=t,limits.iops-size=5
throttle-group,id=t,limits.iops-total=10,limits.iops-total-max-length=2
throttle-group,id=t,limits.iops-total-max=10
throttle-group,id=t,limits.iops-total=10,limits.iops-total-max=20,limits.iops-total-max-length=0
throttle-group,id=t,limits.iops-total=10,limits.iops-total-max=20,limits.iops-total-max-length=-1
throttle-group,id=t,limits.iops-total=10,limits.iops-total-max-length=-1
throttle-group,id=t,limits.iops-total=10,limits.iops-total-max=20,limits.iops-total-max-length=5000000000
throttle-group,id=t,limits.iops-size=5000000000,limits.iops-total=1
throttle-group,id=t,limits.iops-size=-5,limits.iops-total=1
{"qom-type":"throttle-group","id":"t","limits":{"x":5}}
{"qom-type":"throttle-group","id":"t","limits":5}
{"qom-type":"throttle-group","id":"t","limits":{"bps-total":"5"}}
{"qom-type":"throttle-group","id":"t","limits":{"bps-total":5.5}}
{"qom-type":"throttle-group","id":"t","limits":{"bps-total":-5}}
{"qom-type":"throttle-group","id":"t","limits":{"bps-total":true}}
{"qom-type":"throttle-group","id":"t","x-bps-total":true}
{"qom-type":"throttle-group","id":"t","x-bps-total":"5"}
{"qom-type":"throttle-group","id":"t","limits":{"bps-total":5,"bps-read":5}}
{"qom-type":"throttle-group","id":5}
{"qom-type":"throttle-group"}
{"id":"t"}
{"qom-type":5,"id":"t"}
{"qom-type":"foo","id":"t"}
{"qom-type":"authz-list","id":"t","rules":[{"match":"x"}]}
{"qom-type":"authz-list","id":"t","rules":[5]}
{"qom-type":"authz-list","id":"t","rules":{}}
{"qom-type":"secret","id":"t","data":5}
{foo
{"qom-type":"secret"
{"qom-type":"secret"} x
{"qom-type":"tls-creds-x509","id":"t","verify-peer":"on"}
secret,id=a.b,data=x
secret,id=é,data=x
SECRET,id=a
throttle-group,id=t,limits.bps-total=5,limits=7
throttle-group,id=t,id=u,foo=5
""".strip().splitlines()

JSON_END = "where a JSON text is cut off is told otherwise"
DIFFERENCES = {
    "secret_keyring,id=s": (
        "Parameter 'qom-type' does not accept value 'secret_keyring'",
        "what is in the kernel's key ring is not read",
    ),
    "throttle-group,id=t,x-bps-total-max-length=5000000000": (
        "x-bps-total-max-length value must be in the range [0, 4294967295]",
        "QEMU's words lack a space",
    ),
    "{foo": ("JSON parse error, premature EOI", JSON_END),
    '{"qom-type":"secret"} x': ("JSON parse error, invalid keyword 'x'", JSON_END),
}
"""What ours says where the words differ, and why."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, and files that secrets refer to."""
    folder = tmp_path_factory.mktemp("objects")
    (folder / "d.img").write_bytes(bytes(4096))
    (folder / "plain").write_bytes(b"abc")
    (folder / "b64").write_bytes(b"YWJj\n")
    (folder / "bad").write_bytes(b"\xff\xfe")
    (folder / "emptydir").mkdir()
    return folder


def expected_words(line: str, theirs: str) -> str:
    """What ours has to say where QEMU's tool says `theirs`."""
    words, _ = DIFFERENCES.get(line, (theirs, ""))
    assert line not in DIFFERENCES or words != theirs, "no difference any more"
    return words


@pytest.mark.parametrize("line", LINES)
def test_an_object_beside_qemu_img(line: str, folder: Path) -> None:
    words = ["info", "-f", "raw", "--object", line, "d.img"]
    theirs, ours = run_theirs("qemu-img", words, folder), run_ours(words, folder)
    assert ours.code == theirs.code
    said = expected_words(line, theirs.complaint.removeprefix("TOOL: "))
    assert ours.complaint.removeprefix("TOOL: ") == said


PAIRS = [
    ("secret,id=a,data=x", "secret,id=a,data=x"),
    ("secret,id=a,data=x", "secret,id=a"),
    ("secret,id=a,data=x", "secret,id=b,data=x,keyid=a"),
    ("secret,id=a,data=0123456789abcdef0123456789abcdef", "secret,id=b,data=x,keyid=a"),
    ("secret,id=a,data=0123456789abcdef0123456789abcdef", "secret,id=b,data=x,keyid=a,iv=YWJj"),
    ("secret,id=a,data=0123456789abcdef0123456789abcdef", "secret,id=b,data=x,keyid=a,iv=a b"),
    ("throttle-group,id=a", "secret,id=b,data=x,keyid=a"),
    ("throttle-group,id=a", "secret,id=b,file=nosuch,keyid=a"),
]


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_objects_beside_each_other(pair: tuple[str, str], folder: Path) -> None:
    words = ["info", "-f", "raw", "--object", pair[0], "--object", pair[1], "d.img"]
    theirs, ours = run_theirs("qemu-img", words, folder), run_ours(words, folder)
    assert ours.code == theirs.code == 1
    assert ours.complaint == theirs.complaint


def test_a_secret_that_is_encrypted_is_refused_and_not_taken_for_its_text(folder: Path) -> None:
    key = "secret,id=a,data=0123456789abcdef0123456789abcdef"
    secret = "secret,id=b,keyid=a,iv=MDEyMzQ1Njc4OWFiY2RlZg==,data=0123456789abcdef"
    ours = run_ours(["info", "--object", key, "--object", secret, "d.img"], folder)
    assert (ours.code, ours.complaint) == (1, "TOOL: Encrypted secrets are not supported")


COMMANDS = (
    ("qemu-img", ["info", "d.img"]),
    ("qemu-img", ["convert", "-O", "raw", "d.img", "new.img"]),
    ("qemu-img", ["create", "-f", "raw", "new.img", "1M"]),
    ("qemu-io", ["-c", "length", "d.img"]),
    ("qemu-nbd", ["-t", "d.img"]),
    ("qemu-nbd", ["--list", "-k", "/nowhere/sock"]),
)


@pytest.mark.parametrize("line", ["secret,id=s,file=nosuch", "authz-pam,id=p", "can-bus,id=c"])
@pytest.mark.parametrize(("tool", "words"), COMMANDS)
def test_every_command_refuses_it_before_it_does_anything(
    tool: str, words: list[str], line: str, folder: Path
) -> None:
    word = {"qemu-io": ["io"], "qemu-nbd": ["nbd"]}.get(tool, [])
    given = ["--object", line]
    ours = run_ours([*word, *(words + given if not word else given + words)], folder)
    theirs = run_theirs(tool, [*words, *given], folder)
    assert ours.code == theirs.code == 1
    said = ours.complaint.removeprefix("TOOL: ")
    if line.startswith("secret"):
        assert said == theirs.complaint.removeprefix("TOOL: ").removeprefix("qemu-nbd: ")
    else:
        assert said.startswith("Parameter 'qom-type' does not accept value")
    assert not (folder / "new.img").exists()


DAEMON_LINES = [
    *("secret,id=s", "secret,id=s,file=nosuch", "secret,id=s,data=a!b,format=base64"),
    *("secret,id=s,data=a,keyid=k", "tls-creds-x509,id=t", "tls-creds-x509,id=t,dir=nosuch"),
    *("tls-creds-x509,id=t,endpoint=no,dir=nosuch", "tls-creds-psk,id=t,dir=nosuch"),
    *("tls-cipher-suites,id=t", "authz-simple,id=a", "authz-list,id=a,policy=foo"),
    *("iothread,id=i,poll-max-ns=-1", "iothread,id=i,thread-pool-max=0"),
    *("iothread,id=i,thread-pool-min=5,thread-pool-max=3", "main-loop,id=m,thread-pool-max=0"),
    *("throttle-group,id=t,x-bps-total=-1", "throttle-group,id=t,x-bps-total=1M"),
    *("throttle-group,id=t,x-bps-total=1,x-bps-read=1", "throttle-group,id=t,limits.x=1"),
    *("throttle-group,id=t,limits.bps-total=-1", "throttle-group,id=t,limits.iops-size=1"),
    *("foo,id=a", "secret"),
]


@pytest.mark.parametrize("line", DAEMON_LINES)
def test_a_daemon_does_not_start(line: str, folder: Path) -> None:
    ours = _run([sys.executable, "-m", "blocklayer", "daemon", "--object", line], folder)
    theirs = _run(["qemu-storage-daemon", "--object", line], folder)
    assert (ours[0], ours[1].removeprefix("blk: ")) == (
        1,
        theirs[1].removeprefix("qemu-storage-daemon: "),
    )
    assert theirs[0] == 1


def _run(command: list[str], folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    return done.returncode, done.stderr


# --- throttle groups ------------------------------------------------------------------------------

OPEN = "driver=throttle,file.filename=d.img"
NODES = [
    f"--image-opts {OPEN}",
    f"--image-opts {OPEN},throttle-group=typo",
    f"--image-opts {OPEN},throttle-group=",
    f"--image-opts {OPEN},throttle-group=s",
    "--image-opts driver=throttle,file.filename=nosuch,throttle-group=typo",
    "--image-opts driver=throttle,throttle-group=typo",
    'json:{"driver":"throttle","throttle-group":"typo","file":{"driver":"file","filename":"d.img"}}',
    'json:{"driver":"throttle","throttle-group":5,"file":{"driver":"file","filename":"d.img"}}',
    'json:{"driver":"throttle","file":{"driver":"file","filename":"d.img"}}',
]


@pytest.mark.parametrize("node", NODES)
def test_a_filter_without_its_group_is_refused(node: str, folder: Path) -> None:
    objects = ["--object", "throttle-group,id=g", "--object", "secret,id=s,data=x"]
    words = ["info", *objects, *(node.split(" ") if node.startswith("--") else [node])]
    theirs, ours = run_theirs("qemu-img", words, folder), run_ours(words, folder)
    assert ours.code == theirs.code == 1
    last = ours.complaint.split("': ")[-1]
    assert last == theirs.complaint.split("': ")[-1]
    assert "hrottle group" in last or "nosuch" in ours.complaint or "block device" in last


def test_limits_of_an_object_are_applied(folder: Path) -> None:
    """A megabyte, at 400 KB a second: x-… are the same limits as those of `limits`."""
    (folder / "big.img").write_bytes(b"x" * 1000_000)
    for limits in (
        "limits.bps-total=400000",
        "x-bps-total=400000",
        "x-iops-total=4,x-iops-size=100000",
    ):
        for tool in ("qemu-img", "blk"):
            words = ["convert", "-O", "raw", "--object", f"throttle-group,id=g,{limits}"]
            words += [
                "--image-opts",
                "driver=throttle,throttle-group=g,file.filename=big.img",
                "to",
            ]
            start = time.monotonic()
            run = run_ours(words, folder) if tool == "blk" else run_theirs(tool, words, folder)
            assert run.code == 0
            if tool == "blk":
                assert time.monotonic() - start > 1
            assert (folder / "to").read_bytes()[:1000_000] == b"x" * 1000_000


# --- the two tables -------------------------------------------------------------------------------


def test_the_daemon_takes_the_same_objects() -> None:
    """The declarations of `object-add` and the table for the other commands."""
    from msgspec import inspect

    from blocklayer.qmp.schema.objects import Objects

    def shape(kind: Any) -> Any:
        if isinstance(kind, inspect.UnionType):
            (kind,) = (each for each in kind.types if not isinstance(each, inspect.NoneType))
        if isinstance(kind, inspect.Metadata):
            kind = kind.type
        if isinstance(kind, inspect.StructType):
            return members(kind)
        if isinstance(kind, inspect.ListType):
            return [shape(kind.item_type)]
        if isinstance(kind, inspect.LiteralType):
            return {*kind.values}
        return {"StrType": "string", "BoolType": "boolean", "IntType": "integer"}[
            type(kind).__name__
        ]

    def members(kind: Any) -> dict[str, Any]:
        return {
            field.encode_name + ("!" if field.required else ""): shape(field.type)
            for field in kind.fields
        }

    def plain(kind: Any) -> Any:
        if isinstance(kind, dict):
            return {name: plain(each) for name, each in kind.items()}
        return (
            [plain(kind[0])]
            if isinstance(kind, list)
            else {*kind}
            if isinstance(kind, tuple)
            else kind
        )

    declared = inspect.type_info(Objects)
    assert isinstance(declared, inspect.UnionType)
    theirs = {str(each.tag): members(each) for each in declared.types}  # type: ignore[attr-defined]
    assert theirs == {kind: {"id!": "string", **plain(given)} for kind, given in KINDS.items()}
