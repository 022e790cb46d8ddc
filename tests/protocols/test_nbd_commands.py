# SPDX-License-Identifier: Apache-2.0
"""Commands on exports: what they print is what qemu-img prints."""

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from blocklayer.cli.main import main
from tests.support import needs
from tests.support.nbd_servers import Peer, nbdkit, qemu_nbd, running

pytestmark = needs("qemu-nbd", "qemu-img", "nbdkit")


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    folder = tmp_path_factory.mktemp("nbd")
    image = folder / "image.qed"
    blocklayer.create(image, format="qed", size=16 * MiB)
    with blocklayer.open(image, mode="r+") as disk:
        disk.write(MiB, b"data" * 100000)
        disk.write(9 * MiB, b"more")
        disk.write_zeroes(12 * MiB, MiB)
    command = qemu_nbd(folder / "s", image, "-f", "qed", "-r", "-x", "disk")
    with running(command, folder / "s") as found:
        yield found


LINES = [
    "map -f raw {uri}",
    "map -f raw --output=json {uri}",
    "info -f raw {uri}",
    "info {uri}",
    "info {legacy}",
    "info --image-opts driver=nbd,path={socket},export=disk",
    "info --image-opts driver=raw,file.driver=nbd,file.path={socket},file.export=disk",
    "measure -O raw -f raw {uri}",
    "compare -f raw -F raw {uri} {uri}",
    "info {uri}no",
    "info nbd+unix:///disk?socket=/nowhere/at/all",
    "info nbd://127.0.0.1:1/disk",
    "info nbd:127.0.0.1:1:exportname=disk",
    "info nbd:",
    "info --image-opts driver=nbd",
    "info --image-opts driver=nbd,host=127.0.0.1,port=1",
    "info --image-opts driver=nbd,path=/s,host=h",
    "info --image-opts driver=nbd,path=/s,tls-creds=nobody",
    "info --image-opts driver=nbd,server.type=unix",
    "info --image-opts driver=nbd,server.type=pigeon",
    "info --image-opts driver=nbd,port=5",
]


@pytest.mark.parametrize("line", LINES)
def test_side_by_side(line: str, peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    names = {
        "uri": f"nbd+unix:///disk?socket={peer.socket}",
        "legacy": f"nbd:unix:{peer.socket}:exportname=disk",
        "socket": str(peer.socket),
    }
    argv = [word.format(**names) for word in line.split()]
    if argv[1].endswith("no"):
        argv[1] = argv[1].replace("/disk?", "/no?").removesuffix("no")
    theirs = subprocess.run(
        ["qemu-img", *argv], capture_output=True, text=True, check=False, timeout=30
    )
    code = main(argv)
    ours = capsys.readouterr()
    assert ours.out.splitlines() == theirs.stdout.splitlines()
    assert ours.err.replace("blk: ", "").splitlines() == (
        theirs.stderr.replace("qemu-img: ", "").splitlines()
    )
    assert code == theirs.returncode


def test_copies(peer: Peer, tmp_path: Path) -> None:
    source = f"nbd+unix:///disk?socket={peer.socket}"
    with running(nbdkit(tmp_path / "t", "memory", "16M"), tmp_path / "t") as target:
        assert main(["convert", "-f", "raw", "-O", "qed", source, str(tmp_path / "a.qed")]) == 0
        assert main(["convert", "-O", "raw", str(tmp_path / "a.qed"), target.uri]) == 0
        assert main(["convert", "-n", "-O", "raw", "-f", "raw", source, target.uri]) == 0
        assert main(["compare", "-f", "raw", "-F", "raw", source, target.uri]) == 0
        assert main(["convert", "-O", "qed", source, target.uri]) == 1
        command = ["qemu-img", "compare", "-f", "raw", "-F", "qed"]
        command += [target.uri, str(tmp_path / "a.qed")]
        subprocess.run(command, check=True, capture_output=True, timeout=30)


def hide(text: str) -> list[str]:
    return text.replace("blk: ", "").replace("qemu-img: ", "").splitlines()


@pytest.mark.parametrize(
    "line",
    [
        "create -f raw {uri} 16M",
        "create -f raw {uri} 1M",
        "create -f raw -q {uri} 1k",
        "create -f raw {uri}",
        "create -f raw -q {uri} 17M",
        "create -f raw -q -o preallocation=full {uri} 1M",
        "create -f raw -q -o nocow=on {uri} 1M",
        "create -f raw -b {small} -F raw {uri} 1M",
        "dd -f raw if={small} of={uri}",
        "dd -f raw bs=64k skip=1 if={small} of={uri}",
        "dd -f raw bs=64k count=1 if={small} of={uri}",
        "dd -f raw if={large} of={uri}",
        "convert -n -f raw {small} {uri}",
        "convert -f raw {small} {uri}",
    ],
)
def test_targets_side_by_side(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small").write_bytes(b"new!" * 64 * KiB)
    (tmp_path / "large").write_bytes(bytes(17 * MiB))
    stored = tmp_path / "stored"
    address = tmp_path / "socket"
    found = []
    for tool in ("qemu-img", "blk"):
        stored.write_bytes(b"old!" * 4 * MiB)
        with running(qemu_nbd(address, stored, "-f", "raw"), address) as target:
            names = {name: str(tmp_path / name) for name in ("small", "large")}
            argv = [word.format(uri=target.uri, **names) for word in line.split()]
            if tool == "blk":
                code = main(argv)
                out, err = capsys.readouterr()
            else:
                ended = subprocess.run(
                    [tool, *argv], capture_output=True, text=True, check=False, timeout=30
                )
                code, out, err = ended.returncode, ended.stdout, ended.stderr
        found.append((code, hide(out), hide(err), hashlib.sha256(stored.read_bytes()).digest()))
    assert found[0] == found[1]


def test_only_raw_images_are_made_on_an_export(
    peer: Peer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"nbd+unix:///disk?socket={peer.socket}"
    (tmp_path / "source").write_bytes(b"data" * KiB)
    for argv in (
        ["create", "-f", "qed", uri, "1M"],
        ["dd", "-f", "raw", "-O", "qed", f"if={tmp_path / 'source'}", f"of={uri}"],
    ):
        assert main(argv) == 1
        said = capsys.readouterr().err
        assert "Nothing but raw images can be made on" in said
        assert "holds a part" not in said


def test_an_export_is_not_copied_over_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "stored"
    stored.write_bytes(content := b"abcdefgh" * 64 * KiB)
    with running(qemu_nbd(tmp_path / "socket", stored, "-f", "raw"), tmp_path / "socket") as target:
        uri = target.uri
        for argv in (
            ["dd", "-f", "raw", "bs=4k", "skip=1", f"if={uri}", f"of={uri}"],
            ["convert", "-n", "-f", "raw", "-O", "raw", uri, uri],
        ):
            assert main(argv) == 1
            assert "is part of the source" in capsys.readouterr().err
    assert stored.read_bytes() == content


def test_an_overlay(peer: Peer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = str(tmp_path / "overlay.qed")
    source = f"nbd+unix:///disk?socket={peer.socket}"
    assert main(["create", "-q", "-f", "qed", "-b", source, "-F", "raw", overlay]) == 0
    assert main(["io", "-c", "write -P 7 1M 64k", "-c", "read -P 7 1M 64k", overlay]) == 0
    assert main(["compare", overlay, source]) == 1
    capsys.readouterr()
    assert main(["map", "--output=json", overlay]) == 0
    theirs = subprocess.run(
        ["qemu-img", "map", "--output=json", overlay], capture_output=True, text=True, check=True
    )
    assert capsys.readouterr().out == theirs.stdout
