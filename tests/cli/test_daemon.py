"""`blk daemon`: its options, its process, its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blocklayer.cli.daemon_options import keyval, split_pairs
from blocklayer.cli.failures import Failure
from blocklayer.qmp.chardev import CLIENTS_MAX
from tests.support import needs
from tests.support.waiting import wait_until

BLK = (sys.executable, "-m", "blocklayer")
DAEMON = (*BLK, "daemon")


STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """A test that fails leaves no daemon behind."""
    yield
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.communicate()
    STARTED.clear()


def start(folder: Path, *options: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [*DAEMON, *options],
        cwd=folder,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    STARTED.append(process)
    return process


def run(folder: Path, *options: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a daemon that ends by itself."""
    done = subprocess.run(
        [*DAEMON, *options], cwd=folder, input=stdin, capture_output=True, timeout=60, check=False
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def connect(where: Path | int) -> socket.socket:
    """To a unix socket, or to a port, that somebody will listen on soon."""
    deadline = time.monotonic() + 30
    is_port = isinstance(where, int)
    while True:
        connection = socket.socket(socket.AF_INET if is_port else socket.AF_UNIX)
        try:
            connection.connect(("127.0.0.1", where) if is_port else str(where))
        except OSError:
            connection.close()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        else:
            connection.settimeout(30)
            return connection


def talk(connection: socket.socket, *commands: str) -> list[Any]:
    """Negotiate, and the answers to commands."""
    with connection, connection.makefile("rwb") as file:
        file.readline()
        answers = []
        for command in ("qmp_capabilities", *commands):
            text = command if command.startswith("{") else json.dumps({"execute": command})
            file.write(text.encode() + b"\n")
            file.flush()
            answers.append(json.loads(file.readline()))
        return answers[1:]


def ends_well(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.decode()) == (0, "")


# --- options --------------------------------------------------------------------------------------

REFUSED = [
    (("--blockdev", "null-co"), "'node-name' must be specified for the root node"),
    (("--blockdev", "x"), "Parameter 'driver' does not accept value 'x'"),
    (
        ("--blockdev", "driver=raw,file=x,node-name=a"),
        "Cannot find device='x' nor node-name='x'",
    ),
    (("--blockdev", "null-co,node-name=a,foo=1"), "Parameter 'foo' is unexpected"),
    (
        ("--blockdev", '{"driver":"null-co"}'),
        "'node-name' must be specified for the root node",
    ),
    (("--blockdev", '{"driver":"null-co"'), "JSON parse error, premature EOI"),
    (("--blockdev", "null-co,node-name=a,size=x"), "Parameter 'size' expects integer"),
    (
        ("--blockdev", "null-co,node-name=a,read-only=x"),
        "Parameter 'read-only' expects 'on' or 'off'",
    ),
    (("--blockdev", ""), "Parameter 'driver' is missing"),
    (("--export", "foo"), "Parameter 'type' does not accept value 'foo'"),
    (("--export", "nbd,id=x,node-name=y"), "Cannot find device='' nor node-name='y'"),
    (("--monitor", "chardev=x"), 'chardev "x" not found'),
    (("--monitor", "x"), 'chardev "x" not found'),
    (("--chardev", "foo"), "chardev: no id specified"),
    (("--chardev", "foo,id=x"), "'foo' is not a valid char driver name"),
    (("--chardev", "null,id=a,foo=1"), "Invalid parameter 'foo'"),
    (
        ("--chardev", "socket,id=x,path=no/such,server=on,wait=off"),
        "Failed to bind socket to no/such: No such file or directory",
    ),
    (("--nbd-server", "addr.type=unix"), "Parameter 'addr.path' is missing"),
    (
        ("--nbd-server", "addr.type=unix,addr.path=no/such"),
        "Failed to bind socket to no/such: No such file or directory",
    ),
]


@pytest.mark.parametrize(("options", "reason"), REFUSED)
def test_what_cannot_be_carried_out_is_told(
    options: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    expected = f"blk: {options[0]} {options[1]}: {reason}\n"
    assert run(tmp_path, *options) == (1, "", expected)


@needs("qemu-storage-daemon")
@pytest.mark.parametrize(("options", "reason"), REFUSED)
def test_the_words_are_those_of_qemus_daemon(
    options: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["qemu-storage-daemon", *options],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.decode() == f"qemu-storage-daemon: {options[0]} {options[1]}: {reason}\n"


def test_other_mistakes(tmp_path: Path) -> None:
    code, _, errors = run(tmp_path, "disk.img")
    assert (code, errors) == (1, "blk: disk.img: Unexpected argument\n")
    code, _, errors = run(tmp_path, "--frob")
    assert code == 1
    assert "unrecognized option '--frob'" in errors
    code, _, errors = run(tmp_path, "--chardev", "stdio,id=a", "--monitor", "a,mode=readline")
    assert (code, errors) == (1, "blk: --monitor a,mode=readline: Only QMP is supported\n")
    code, _, errors = run(tmp_path, "--chardev", "stdio,id=a", "--monitor", "a,frob=1")
    assert errors.endswith("Parameter 'frob' is unexpected\n")
    code, _, errors = run(tmp_path, "--chardev", "stdio,id=a", "--chardev", "stdio,id=b")
    assert errors.endswith("cannot use stdio by multiple character devices\n")
    code, _, errors = run(tmp_path, "--daemonize", "--chardev", "stdio,id=a")
    assert (code, errors) == (1, "blk: --chardev stdio,id=a: cannot use stdio with -daemonize\n")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--blockdev", "help"), "  qed\n"),
        (("--blockdev", "qed,help"), "  backing=<node>"),
        (("--export", "help"), "  nbd\n"),
        (("--export", "nbd,help"), "  writable=<boolean>"),
        (("--nbd-server", "help"), "  max-connections=<integer>"),
        (("--object", "help"), "  secret\n"),
        (("--chardev", "help"), "  socket\n"),
        (("--monitor", "help"), "  chardev="),
        (("--help",), "--blockdev OPTIONS"),
        (("--version",), "blk version"),
    ],
)
def test_help(options: tuple[str, ...], told: str, tmp_path: Path) -> None:
    code, output, errors = run(tmp_path, *options)
    assert (code, errors) == (0, "")
    assert told in output


def test_objects_that_are_listed_can_be_defined(tmp_path: Path) -> None:
    _, output, _ = run(tmp_path, "--object", "help")
    listed = output.split()[5:]
    assert {"iothread", "secret", "throttle-group"} <= set(listed)
    for kind in listed:
        _, _, errors = run(tmp_path, "--object", f"{kind},id=o,foo=1")
        assert "does not accept value" not in errors
    code, _, errors = run(tmp_path, "--object", "thread-context,id=o")
    assert code == 1
    assert errors.endswith("Parameter 'qom-type' does not accept value 'thread-context'\n")


def test_pairs_and_trees_of_options() -> None:
    assert keyval("raw,file.driver=file,file.filename=a,,b", "driver") == {
        "driver": "raw",
        "file": {"driver": "file", "filename": "a,b"},
    }
    assert keyval("a=1,a=2,") == {"a": "2"}
    assert split_pairs("socket,server,path=x", "backend", bare=True) == [
        ("backend", "socket"),
        ("server", "on"),
        ("path", "x"),
    ]
    for text, reason in (
        ("a=1,b,c=2", "Expected '=' after parameter 'b'"),
        ("a=1,a.b=2", "Parameters 'a.*' used inconsistently"),
        ("a.b=1,a=2", "Parameters 'a.*' used inconsistently"),
        ("a b=1", "Invalid parameter 'a b'"),
        (".".join(["a"] * 200) + "=1", "nested too deeply"),
    ):
        with pytest.raises(Failure) as caught:
            keyval(text)
        assert reason in str(caught.value)


# --- monitors -------------------------------------------------------------------------------------


def test_a_monitor_on_stdio(tmp_path: Path) -> None:
    commands = b'{"execute": "qmp_capabilities"}\n{"execute": "quit", "id": 1}\n'
    process = start(
        tmp_path, "--chardev", "stdio,id=m", "--monitor", "m,pretty=off", stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(commands)
    process.stdin.flush()
    output = process.stdout.read()  # stdin stays open: whoever closes it may miss the last event
    ends_well(process)
    lines = [json.loads(line) for line in output.splitlines()]
    assert lines[1:3] == [{"return": {}}, {"return": {}, "id": 1}]
    assert lines[3]["event"] == "SHUTDOWN"


def test_pretty_answers(tmp_path: Path) -> None:
    commands = b'{"execute": "qmp_capabilities"}{"execute": "quit"}'
    _, output, _ = run(tmp_path, "--chardev", "stdio,id=m", "--monitor", "m,pretty", stdin=commands)
    assert output.startswith('{\n    "QMP": {')


def test_the_end_of_stdin_is_not_the_end_of_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "s"
    process = start(
        tmp_path,
        *("--chardev", "stdio,id=m", "--monitor", "m"),
        *("--chardev", "socket,id=s,path=s,server=on,wait=off", "--monitor", "s"),
    )
    (answer,) = talk(connect(path), "query-status")
    assert answer["return"]["running"] is True
    assert talk(connect(path), "quit") == [{"return": {}}]
    ends_well(process)


def test_monitors_on_tcp_pipes_and_several_sockets(tmp_path: Path) -> None:
    for name in ("p.in", "p.out"):
        os.mkfifo(tmp_path / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start(
        tmp_path,
        *("--chardev", "socket,id=a,path=a,server,nowait", "--monitor", "a"),
        *("--chardev", "socket,id=b,path=b,server=on,wait=off", "--monitor", "chardev=b"),
        *("--chardev", f"socket,id=t,host=127.0.0.1,port={port},server=on,wait=off"),
        *("--monitor", '{"chardev": "t", "pretty": false}'),
        *("--chardev", "pipe,id=p,path=p", "--monitor", "p"),
        *("--chardev", "null,id=n", "--monitor", "n"),
        *("--chardev", "file,id=f,path=f", "--monitor", "f"),
    )
    first, second = connect(tmp_path / "a"), connect(tmp_path / "b")
    third = connect(tmp_path / "a")
    tcp = connect(port)
    for connection in (tcp, third, second, first):
        assert talk(connection, "query-version")[0]["return"]["qemu"]["major"] == 7
    with open(tmp_path / "p.in", "wb") as to, open(tmp_path / "p.out", "rb") as back:
        to.write(b'{"execute": "qmp_capabilities"}{"execute": "quit"}')
        to.flush()
        lines = [json.loads(back.readline()) for _ in range(3)]
    assert lines[1:] == [{"return": {}}, {"return": {}}]
    ends_well(process)
    assert b'"QMP"' in (tmp_path / "f").read_bytes()
    assert not (tmp_path / "a").exists()


def test_a_server_can_wait_for_its_first_client(tmp_path: Path) -> None:
    process = start(
        tmp_path,
        *("--chardev", "socket,id=a,path=a,server=on", "--monitor", "a"),
        *("--pidfile", "pid"),
    )
    assert talk(connect(tmp_path / "a"), "quit") == [{"return": {}}]
    _, errors = process.communicate(timeout=30)
    assert errors.decode() == "info: waiting for connection on: disconnected:unix:a,server=on\n"
    assert process.returncode == 0


def test_a_monitor_that_connects_to_its_client(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        process = start(tmp_path, "--chardev", "socket,id=a,path=s", "--monitor", "a")
        connection, _ = listener.accept()
    connection.settimeout(30)
    assert talk(connection, "quit") == [{"return": {}}]
    ends_well(process)


def test_a_crowd_is_turned_away(tmp_path: Path) -> None:
    process = start(
        tmp_path, "--chardev", "socket,id=a,path=a,server=on,wait=off", "--monitor", "a"
    )
    crowd = [connect(tmp_path / "a") for _ in range(CLIENTS_MAX)]
    for each in crowd:
        assert each.recv(6) == b'{"QMP"'
    late = connect(tmp_path / "a")
    assert late.recv(1) == b""
    late.close()
    crowd.pop().close()
    deadline = time.monotonic() + 30
    while (again := connect(tmp_path / "a")).recv(6, socket.MSG_PEEK) == b"":
        again.close()
        assert time.monotonic() < deadline
    assert talk(again, "quit") == [{"return": {}}]
    for each in crowd:
        each.close()
    ends_well(process)


def test_the_package_that_is_missing_is_named(tmp_path: Path) -> None:
    program = "import sys; sys.modules['msgspec'] = None\nfrom blocklayer.cli.main import main\n"
    done = subprocess.run(
        [sys.executable, "-c", program + "sys.exit(main(['daemon']))"],
        capture_output=True,
        check=False,
    )
    words = "the daemon needs the package 'msgspec', which is not installed: pip install msgspec"
    assert (done.returncode, done.stderr.decode()) == (1, f"blk: {words}\n")


# --- the process ----------------------------------------------------------------------------------


@needs("qemu-img")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_with_images_clean(number: signal.Signals, tmp_path: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qed", "d", "1M"], cwd=tmp_path, check=True)
    process = start(
        tmp_path,
        *("--blockdev", "qed,node-name=d,file.driver=file,file.filename=d"),
        *("--chardev", "socket,id=a,path=a,server=on,wait=off", "--monitor", "a"),
    )
    write = {"command-line": 'qemu-io d "write -P 5 0 64k"'}
    command = json.dumps({"execute": "human-monitor-command", "arguments": write})
    (answer,) = talk(connect(tmp_path / "a"), command)
    assert "wrote 65536/65536" in answer["return"]
    # Dirty as long as it is open, as QED images without a backing file are.
    assert (tmp_path / "d").read_bytes()[16:24] == (2).to_bytes(8, "little")
    process.send_signal(number)
    ends_well(process)
    assert (tmp_path / "d").read_bytes()[16:24] == bytes(8)
    check = subprocess.run(
        ["qemu-img", "check", "d"], cwd=tmp_path, capture_output=True, check=True
    )
    assert b"No errors" in check.stdout


def test_the_pid_file_is_locked_and_removed(tmp_path: Path) -> None:
    options = ("--pidfile", "pid", "--chardev", "socket,id=a,path=a,server=on,wait=off")
    process = start(tmp_path, *options, "--monitor", "a")
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    connection = connect(tmp_path / "a")
    assert int((tmp_path / "pid").read_text()) == process.pid
    code, _, errors = run(tmp_path, "--pidfile", "pid")
    assert code == 1
    assert errors.startswith("blk: cannot create PID file: Cannot lock pid file")
    assert int((tmp_path / "pid").read_text()) == process.pid
    talk(connection, "quit")
    ends_well(process)
    assert not (tmp_path / "pid").exists()
    code, _, errors = run(tmp_path, "--pidfile", "no/pid")
    assert code == 1
    assert "cannot create PID file: Could not create" in errors


def test_going_on_in_the_background(tmp_path: Path) -> None:
    code, output, errors = run(
        tmp_path,
        *("--daemonize", "--pidfile", "pid"),
        *("--chardev", "socket,id=a,path=a,server=on,wait=off", "--monitor", "a"),
    )
    assert (code, output, errors) == (0, "", "")
    pid = int((tmp_path / "pid").read_text())
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) == pid
    assert talk(connect(tmp_path / "a"), "quit") == [{"return": {}}]
    deadline = time.monotonic() + 30
    while (tmp_path / "pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    code, _, errors = run(tmp_path, "--daemonize", "--blockdev", "x")
    assert (code, "does not accept value 'x'" in errors) == (1, True)


@needs("qemu-img", "nbdinfo")
def test_an_image_is_exported_from_the_command_line_alone(tmp_path: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qed", "d", "1M"], cwd=tmp_path, check=True)
    process = start(
        tmp_path,
        *("--object", "throttle-group,id=g,limits.iops-total=100000"),
        *("--blockdev", '{"driver": "file", "node-name": "f", "filename": "d"}'),
        *("--blockdev", "qed,node-name=q,file=f"),
        *("--blockdev", "throttle,node-name=t,throttle-group=g,file=q"),
        *("--nbd-server", "addr.type=unix,addr.path=nbd,max-connections=3"),
        *("--export", "nbd,id=e,node-name=t,writable=on,name=disk,description=ours"),
    )
    connect(tmp_path / "nbd").close()
    done = subprocess.run(
        ["nbdinfo", "--json", f"nbd+unix:///disk?socket={tmp_path}/nbd"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    (export,) = json.loads(done.stdout)["exports"]
    assert export["export-size"] == 1 << 20
    assert export["description"] == "ours"
    process.send_signal(signal.SIGTERM)
    ends_well(process)
