# SPDX-License-Identifier: Apache-2.0
"""Shells that are asked what they would offer at the end of a line."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

_BASH = """
source "$1"
COMP_LINE=$2 COMP_POINT=${#2} COMP_CWORD=$3
shift 3
COMP_WORDS=("$@")
compopt() { options+=" $*"; }
declare options=
_blk
printf '%s\\n' "$options" "${COMPREPLY[@]}"
"""
_WORD = re.compile(r"""(?:'[^']*'?|"[^"]*"?|\\.|[^\s=:'"\\])+|[=:]+""")


def ask_bash(script: Path, line: str) -> tuple[list[str], str]:
    """What bash offers, and the options that completion has set, as `-o default`.

    Words are given as readline splits them: at spaces, and at = and : too.
    """
    words = _WORD.findall(line)
    if line[-1:].isspace():
        words.append("")
    command = ["bash", "--norc", "-c", _BASH, "bash", script, line, str(len(words) - 1), *words]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=20, check=True)
    assert done.stderr == ""
    options, *offered = done.stdout.splitlines()
    return [word for word in offered if word], options


def ask_fish(script: Path, line: str, home: Path) -> dict[str, str]:
    """What fish offers, and its descriptions."""
    program = "source $argv[1]; complete -C $argv[2]"
    done = subprocess.run(
        ["fish", "--no-config", "-c", program, str(script), line],
        capture_output=True,
        encoding="utf-8",
        timeout=20,
        check=True,
        cwd=home,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "LC_ALL": "C.UTF-8"},
    )
    assert done.stderr == ""
    return dict(line.partition("\t")[::2] for line in done.stdout.splitlines())


_ZSH = """
autoload -U compinit && compinit -u -D
source $1
setopt no_beep no_always_last_prompt
LISTMAX=9999 PS1='> '
compadd() {
    if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\\ * ]]; then
        builtin compadd "$@"
        return
    fi
    local -a hits
    builtin compadd -A hits "$@"
    print -rl -- $hits >> answers
    builtin compadd "$@"
}
answer() {
    zle complete-word
    print @@ >> answers
    BUFFER=
}
zle -N answer
bindkey '^T' answer
print @@ > answers
"""


def ask_zsh(script: Path, lines: list[str], home: Path) -> list[set[str]]:
    """What zsh offers for each line, typed on a terminal."""
    (home / ".zshrc").write_text(_ZSH.replace("$1", str(script)))
    answers = home / "answers"
    master, slave = pty.openpty()
    with subprocess.Popen(
        ["zsh", "-d", "-i"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        cwd=home,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "TERM": "xterm", "ZDOTDIR": str(home)},
    ) as process:
        os.close(slave)
        try:
            _read_until(master, answers, 1)
            for number, line in enumerate(lines):
                os.write(master, f"{line}\x14".encode())
                _read_until(master, answers, number + 2)
            os.write(master, b"exit\n")
            _read_until(master, answers, None)
            process.wait(20)
        finally:
            process.kill()  # it may wait for what will never be typed
    os.close(master)
    _, *parts = answers.read_text().split("@@\n")
    return [set(part.splitlines()) for part in parts[: len(lines)]]


def _read_until(master: int, answers: Path, marks: int | None) -> None:
    """Read what the terminal shows until the file has so many marks, or to the end."""
    deadline = time.monotonic() + 20
    shown = b""
    while marks is None or not answers.exists() or answers.read_text().count("@@\n") < marks:
        assert time.monotonic() < deadline, shown.decode("utf-8", "replace")
        if select.select([master], [], [], 0.02)[0]:
            try:
                shown += os.read(master, 65536)
            except OSError:
                return


_BASHRC = """
source "$1"
blk() { printf '<%s>' "$@" >> asked; echo @@ >> asked; }
"""


def type_into_bash(script: Path, lines: list[str], home: Path) -> list[str]:
    """The words that `blk` gets when lines, with tabs in them, are typed on a terminal."""
    asked = home / "asked"
    (home / "rc").write_text(_BASHRC.replace("$1", str(script)))
    master, slave = pty.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", "bash", "--rcfile", "rc", "-i"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=home,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "TERM": "dumb"},
    ) as process:
        os.close(slave)
        try:
            for number, line in enumerate(lines, 1):
                os.write(master, f"{line}\n".encode())
                _read_until(master, asked, number)
            os.write(master, b"exit\n")
            _read_until(master, asked, None)
            process.wait(20)
        finally:
            process.kill()  # it may wait for what will never be typed
    os.close(master)
    return asked.read_text().split("@@\n")[: len(lines)]
