# SPDX-License-Identifier: Apache-2.0
"""`blk nbd` as a process: what it serves, how it begins, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import MiB
from blocklayer.cli.main import main
from blocklayer.nbd import wire
from tests.support import needs
from tests.support.nbd_peer import EXTENDED, FLUSH, STATUS, WRITE, NbdPeer
from tests.support.nbd_process import PATIENCE, BlkNbd, blk_nbd, words_of
from tests.support.waiting import wait_until

SIZE = 4 * MiB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A QED image with a word in it."""
    path = tmp_path / "disk.qed"
    blocklayer.create(str(path), format="qed", size=SIZE)
    with blocklayer.open(str(path), mode="r+") as disk:
        disk.write(1000, b"content")
    return path


@pytest.fixture
def where(tmp_path: Path) -> Path:
    return tmp_path / "nbd.sock"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


# --- what it serves -----------------------------------------------------------------------------


def test_traces(image: Path, where: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with blk_nbd(where, "-T", f"qed_*,file={log}", "-f", "qed", image) as server:
        with server.connect() as peer:
            assert peer.read(1000, 7) == b"content"
        assert server.ended() == (0, "")
    assert " qed_read_aio " in log.read_text()


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nbd", flag]) == 0
    assert capsys.readouterr().out == f"blk version {blocklayer.__version__}\n"


def test_one_client_and_it_is_over(image: Path, where: Path) -> None:
    with blk_nbd(where, "-f", "qed", image) as server:
        with server.connect() as peer:
            assert peer.read(1000, 7) == b"content"
            assert not peer.flags & (wire.FLAG_READ_ONLY | wire.FLAG_CAN_MULTI_CONN)
            peer.write(SIZE - 5, b"12345")
        assert server.ended() == (0, "")
    assert not where.exists()
    with blocklayer.open(str(image)) as disk:
        assert disk.read(SIZE - 5, 5) == b"12345"
    assert blocklayer.check(str(image)).clean


def test_who_only_looks_is_no_client(image: Path, where: Path) -> None:
    with blk_nbd(where, "-f", "qed", image) as server:
        for _ in range(3):
            with server.connect(mode=None) as peer:
                peer.greet()
                assert peer.option(wire.OPT_LIST).kind == wire.REP_ACK
        with server.connect() as peer:
            assert peer.read(1000, 7) == b"content"
        assert server.ended()[0] == 0


def test_persistent(image: Path, where: Path) -> None:
    with blk_nbd(where, "-t", "-f", "qed", image) as server:
        for number in range(3):
            with server.connect() as peer:
                peer.write(number, b"x")
        assert server.process.poll() is None
        assert server.end() == (0, "")
    assert not where.exists()


def test_shared(image: Path, where: Path) -> None:
    with blk_nbd(where, "-e", "2", "-f", "qed", image) as server:
        first, second = server.connect(), server.connect()
        assert first.flags & wire.FLAG_CAN_MULTI_CONN
        first.write(0, b"shared")
        assert second.read(0, 6) == b"shared"
        third = server.connect(mode=None)
        third.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            third.take(1)
        first.close()
        third.socket.settimeout(PATIENCE)
        third.begin("", "structured")
        second.close()
        assert server.process.poll() is None
        third.close()
        assert server.ended()[0] == 0


def test_any_number(image: Path, where: Path) -> None:
    with blk_nbd(where, "-e", "0", "-t", "-r", "-f", "qed", image) as server:
        peers = [server.connect() for _ in range(40)]
        assert all(peer.read(1000, 7) == b"content" for peer in peers)
        assert all(peer.flags & wire.FLAG_READ_ONLY for peer in peers)
        assert peers[0].do(WRITE, 0, payload=b"x").error == wire.EPERM
        for peer in peers:
            peer.close()
        assert server.end()[0] == 0


def test_names_offsets_and_contexts(image: Path, where: Path) -> None:
    words = ["-x", "größe", "-D", "ein Text", "-o", "1000", "-A", "-r", "-f", "qed", image]
    with blk_nbd(where, *words) as server:
        wrong = server.connect(mode=None)
        wrong.greet()
        answer = wrong.option(wire.OPT_LIST)
        assert answer.replies[0][1] == b"\0\0\0\x07" + "größe".encode() + b"ein Text"
        wrong.close()
        contexts = [wire.BASE_ALLOCATION, wire.ALLOCATION_DEPTH]
        with server.connect(export="größe", mode=EXTENDED, contexts=contexts) as peer:
            assert peer.size == SIZE - 512  # in sectors, as QEMU has it
            assert peer.read(0, 7) == b"content"
            status = peer.do(STATUS, 0, peer.size).status
            assert status[peer.contexts[wire.ALLOCATION_DEPTH]][0][1] == 1
        assert server.ended()[0] == 0


@pytest.mark.parametrize("options", [[], ["-r"]])
def test_a_snapshot_leaves_the_image_alone(
    image: Path, where: Path, tmp_path: Path, options: list[str]
) -> None:
    before = image.read_bytes()
    with blk_nbd(where, "-s", "-f", "qed", *options, image) as server:
        with server.connect() as peer:
            assert peer.read(1000, 7) == b"content"
            if not options:
                peer.write(1000, b"CHANGED")
                assert peer.read(999, 9) == b"\0CHANGED\0"
        assert server.ended()[0] == 0
    assert image.read_bytes() == before


@pytest.mark.parametrize("number", [0, signal.SIGTERM, signal.SIGKILL])
def test_a_snapshot_leaves_no_file(
    image: Path, where: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    with blk_nbd(where, "-s", "-f", "qed", image) as server:
        with server.connect() as peer:
            peer.write(0, b"x" * MiB)
            opened = Path(f"/proc/{server.process.pid}/fd").iterdir()
            links = [os.readlink(each) for each in opened]
            assert any(link.startswith(str(folder)) and "(deleted)" in link for link in links)
            assert peer.read(0, MiB) == b"x" * MiB
            if number:
                code, said = server.end(number)
                assert (code, said) == (-number if number == signal.SIGKILL else 0, "")
        if not number:
            assert server.ended()[0] == 0
    assert list(folder.iterdir()) == []


def test_image_options(image: Path, where: Path) -> None:
    options = f"driver=qed,file.driver=file,file.filename={image}"
    with blk_nbd(where, "--image-opts", options) as server:
        with server.connect() as peer:
            assert peer.read(1000, 7) == b"content"
        assert server.ended() == (0, "")


@pytest.mark.parametrize("cache", ["none", "writethrough", "writeback", "directsync", "unsafe"])
def test_cache_modes(image: Path, where: Path, cache: str) -> None:
    options = ["--cache", cache, "--discard=unmap", "--detect-zeroes=unmap", "--aio=threads"]
    with blk_nbd(where, *options, "-f", "qed", image) as server:
        with server.connect() as peer:
            peer.write(5000, b"cached")
            peer.write(65_536, bytes(65_536))
            assert peer.read(5000, 6) == b"cached"
            assert peer.do(FLUSH).error == 0
        assert server.ended() == (0, "")
    assert blocklayer.check(str(image)).clean


def test_tcp(image: Path) -> None:
    port = free_port()
    server = BlkNbd("-p", port, "-b", "127.0.0.1", "-t", "-f", "qed", image)
    peers: list[NbdPeer] = []

    def reached() -> bool:
        assert server.process.poll() is None
        try:
            peers.append(NbdPeer(("127.0.0.1", port)))
        except ConnectionRefusedError:
            return False
        return True

    wait_until(reached, "nobody listens")
    with peers[0] as peer:
        assert peer.read(1000, 7) == b"content"
    assert server.end() == (0, "")


# --- how it begins ------------------------------------------------------------------------------


def test_in_the_background(image: Path, where: Path, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    words = words_of("--fork", "--pid-file", pid_file, "-t", "-k", where, "-f", "qed", image)
    done = subprocess.run(words, capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    pid = int(pid_file.read_text())
    try:
        with NbdPeer(where) as peer:  # at once: it is ready when the command returns
            assert peer.read(1000, 7) == b"content"
        assert os.getsid(pid) == pid
        assert os.readlink(f"/proc/{pid}/fd/1") == "/dev/null"
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not pid_file.exists(), "it does not end")
    wait_until(lambda: not where.exists(), "the socket stays")
    wait_until(lambda: not os.path.exists(f"/proc/{pid}") or is_zombie(pid), "the process stays")
    assert blocklayer.check(str(image)).clean


def test_a_pid_file_that_is_in_use_is_left_alone(image: Path, where: Path, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with blk_nbd(where, "-t", "--pid-file", pid_file, "-f", "qed", image) as server:
        second = tmp_path / "second.sock"
        words = words_of("-t", "--pid-file", pid_file, "-r", "-k", second, "-f", "raw", __file__)
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith(f"blk: Cannot lock pid file '{pid_file}'")
        assert not second.exists()
        assert int(pid_file.read_text()) == server.process.pid
        assert server.end() == (0, "")
    assert not pid_file.exists()


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_failing_in_the_background_is_told(tmp_path: Path, where: Path, image: Path) -> None:
    for words, complaint in (
        (["-k", where, tmp_path / "none"], "Could not open"),
        (["-k", tmp_path / "no" / "where", "-f", "qed", image], "Failed to bind socket"),
    ):
        done = subprocess.run(
            words_of("--fork", *words), capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode == 1
        assert complaint in done.stderr


@pytest.mark.parametrize("pid_shift", [0, 1])
def test_socket_activation(image: Path, where: Path, pid_shift: int) -> None:
    """As systemd does it: a listening socket is descriptor 3."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(where))
    listener.listen()
    code = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True);"
        f"os.environ['LISTEN_PID'] = str(os.getpid() + {pid_shift});"
        "os.environ['LISTEN_FDS'] = '1';"
        "os.execv(sys.executable, [sys.executable, '-m', 'blocklayer', 'nbd', *sys.argv[2:]])"
    )
    port = free_port()
    words = ["-b", "127.0.0.1", "-p", str(port)] if pid_shift else []
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(listener.fileno()), *words, "-f", "qed", str(image)],
        pass_fds=[listener.fileno()],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if pid_shift:  # meant for somebody else
            wait_until(lambda: can_connect(port), "it does not listen by itself")
        else:
            with NbdPeer(where) as peer:
                assert peer.read(1000, 7) == b"content"
            assert process.wait(PATIENCE) == 0
            assert where.exists(), "it was systemd's"
            late = socket.socket(socket.AF_UNIX)
            late.settimeout(5)
            late.connect(str(where))  # for the next server
            late.close()
    finally:
        process.kill()
        process.communicate()
        listener.close()


def can_connect(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except ConnectionRefusedError:
        return False


def test_activation_and_addresses_exclude_each_other(image: Path, where: Path) -> None:
    code = (
        "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid());"
        "os.environ['LISTEN_FDS'] = '1'; os.dup2(0, 3);"
        "os.execv(sys.executable, [sys.executable, '-m', 'blocklayer', 'nbd', *sys.argv[1:]])"
    )
    for words in (["-k", str(where)], ["-p", "10999"], ["-b", "::1"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words, str(image)],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == 1
        assert "socket activation" in done.stderr


@pytest.mark.parametrize(
    ("count", "words"),
    [("1", "not a listening socket"), ("2", "fd = 4: Bad file"), ("999999999", "fd = 4: Bad file")],
)
def test_activation_with_what_is_no_socket(image: Path, count: str, words: str) -> None:
    code = (
        "import os, socket, sys; os.environ['LISTEN_PID'] = str(os.getpid());"
        "os.environ['LISTEN_FDS'] = sys.argv[1]; os.dup2(socket.socket().detach(), 3);"
        "os.set_inheritable(3, True);"
        "os.closerange(4, 100);"
        "os.execv(sys.executable, [sys.executable, '-m', 'blocklayer', 'nbd', sys.argv[2]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, count, str(image)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_several_activated_sockets(image: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    listeners = []
    for path in paths:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        listeners.append(listener)
    code = (
        "import os, sys; os.dup2(int(sys.argv[1]), 100); os.dup2(int(sys.argv[2]), 101);"
        "os.dup2(100, 3); os.dup2(101, 4); os.environ['LISTEN_PID'] = str(os.getpid());"
        "os.environ['LISTEN_FDS'] = '2';"
        "os.execv(sys.executable, [sys.executable, '-m', 'blocklayer', 'nbd', *sys.argv[3:]])"
    )
    numbers = [listener.fileno() for listener in listeners]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, numbers), "-e", "2", "-f", "qed", str(image)],
        pass_fds=numbers,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with NbdPeer(paths[0]) as one, NbdPeer(paths[1]) as two:
            one.write(0, b"by one")
            assert two.read(0, 6) == b"by one"
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()
        for listener in listeners:
            listener.close()


# --- how it ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_cleanly(image: Path, where: Path, number: int) -> None:
    with blk_nbd(where, "-t", "-e", "3", "-f", "qed", image) as server:
        idle, silent, busy = server.connect(), server.connect(mode=None), server.connect()
        busy.write(0, b"y" * 300_000)
        assert server.end(number) == (0, "")
        for peer in (idle, silent, busy):
            peer.close()
    assert not where.exists()
    assert blocklayer.check(str(image)).clean
    with blocklayer.open(str(image)) as disk:
        assert disk.read(0, 300_000) == b"y" * 300_000


@pytest.mark.slow
def test_a_client_that_does_not_read_does_not_keep_it(image: Path, where: Path) -> None:
    with blk_nbd(where, "-t", "-f", "qed", image) as server:
        peer = server.connect(mode="simple")
        for _ in range(30):
            peer.ask(0, 0, SIZE)
        started = time.monotonic()
        assert server.end()[0] == 0
        assert time.monotonic() - started < 15
        peer.close()


# --- what it tells ------------------------------------------------------------------------------


def test_verbose(image: Path, where: Path) -> None:
    with blk_nbd(where, "-v", "-f", "qed", image) as server:
        with server.connect(mode=None) as peer:
            peer.greet()
            peer.send(b"GET / HTTP/1.1\r\n\r\n")
            assert peer.ended()
        with server.connect() as peer:
            peer.read(0, 512)
        code, said = server.ended()
    assert code == 0
    assert "connected" in said
    assert "disconnected" in said
    assert "wrong magic" in said
    assert "Traceback" not in said


def test_metrics(image: Path, where: Path) -> None:
    pytest.importorskip("prometheus_client")
    port = free_port()
    with blk_nbd(where, "-t", "--metrics", port, "-x", 'a"b', "-f", "qed", image) as server:
        with server.connect(export='a"b') as peer:
            peer.write(0, b"z" * 1000)
            peer.read(0, 600)
            peer.do(77)
            peer.do(78)
            url = f"http://127.0.0.1:{port}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read().decode()
        assert server.end() == (0, "")
    values = dict(re.findall(r"^(\w+\{.*\}) (\S+)$", text, flags=re.MULTILINE))
    label = 'export="a\\"b"'
    assert float(values[f'blocklayer_nbd_bytes_total{{direction="write",{label}}}']) == 1000
    assert float(values[f'blocklayer_nbd_bytes_total{{direction="read",{label}}}']) == 600
    assert float(values[f'blocklayer_nbd_requests_total{{command="unknown",{label}}}']) == 2
    assert float(values[f"blocklayer_nbd_errors_total{{{label}}}"]) == 2
    assert float(values[f"blocklayer_nbd_clients{{{label}}}"]) == 1
    assert float(values[f"blocklayer_nbd_size_bytes{{{label}}}"]) == SIZE
    assert len(values) == len(re.findall(r"^blocklayer_\w+\{", text, flags=re.MULTILINE))


@needs("nbdinfo")
def test_nbdinfo_over_the_command(image: Path, where: Path) -> None:
    with blk_nbd(where, "-t", "-f", "qed", "-x", "name", image) as server:
        words = ["nbdinfo", "--json", f"nbd+unix:///name?socket={where}"]
        done = subprocess.run(words, capture_output=True, timeout=20, check=True)
        assert json.loads(done.stdout)["exports"][0]["export-size"] == SIZE
        assert server.end()[0] == 0
