# SPDX-License-Identifier: Apache-2.0
"""Words that nobody knows are answered with those that may have been meant."""

from __future__ import annotations

import pytest

from blocklayer.cli.main import main


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("inof", ["blk: Command not found: inof", "Did you mean 'info'?"]),
        ("help conver", ["blk: Command not found: conver", "Did you mean 'convert'?"]),
        ("zzz", ["blk: Command not found: zzz"]),
        ("--verison", ["blk: unrecognized option '--verison'", "Did you mean '--version'?"]),
        ("info --formt x", ["blk: unrecognized option '--formt'", "Did you mean '--format'?"]),
        ("info --formt=x", ["blk: unrecognized option '--formt=x'", "Did you mean '--format'?"]),
        ("info -Z", ["blk: unrecognized option '-Z'"]),
        ("info --zzzzz", ["blk: unrecognized option '--zzzzz'"]),
        (
            "convert --target a b",
            [
                "blk: unrecognized option '--target'",
                (
                    "It may be '--target-format', '--target-format-options', '--target-is-zero',"
                    " '--target-image-opts' or '--target-cache'."
                ),
            ],
        ),
        (
            "info --force-share=yes x",
            ["blk: unrecognized option '--force-share=yes'", "'--force-share' takes no value."],
        ),
        ("help info map", ["blk: Unexpected argument: map"]),
    ],
)
def test_the_command_line(line: str, told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 1
    hint = "Try 'blk --help' for more information"
    assert capsys.readouterr().err.splitlines() == [*told, hint]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raed", ['command "raed" not found', "Did you mean 'read'?"]),
        ("helpp", ['command "helpp" not found', "Did you mean 'help'?"]),
        ("zzz", ['command "zzz" not found']),
    ],
)
def test_commands_of_io(name: str, told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["io", "-c", name]) == 1
    assert capsys.readouterr().err.splitlines() == told
