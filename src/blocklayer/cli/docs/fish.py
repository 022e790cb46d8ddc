# SPDX-License-Identifier: Apache-2.0
"""Completion for fish: a `complete` line for each option, and functions for what depends."""

from __future__ import annotations

from collections.abc import Iterator

from blocklayer.cli.docs import model
from blocklayer.cli.getopt import Option
from blocklayer.cli.io import all_commands
from blocklayer.cli.parsing import Command
from blocklayer.cli.usage import spellings

_HEAD = """\
# SPDX-License-Identifier: Apache-2.0
# Completion of blk for fish; made by 'blk completion fish'. No program is started to complete.

# The words of the command line after blk's own options: the command first.
function __blk_words
    set -l words (commandline -opc)
    set -e words[1]
    while set -q words[1]; and string match -q -- '-*' $words[1]
        if contains -- $words[1] -T --trace
            set -e words[1]
        end
        set -e words[1]
    end
    set -q words[1]; and printf '%s\\n' $words
end

# Whether the command is the one that is named; without a name, whether there is none yet.
function __blk_is
    set -l words (__blk_words)
    test "$words[1]" = "$argv[1]"
end

function __blk_has
    contains -- $argv[1] (__blk_words)
end

# The format that an option has chosen, whose spellings the arguments are; raw if none has.
function __blk_format
    set -l words (__blk_words)
    set -l format raw
    for index in (seq (count $words))
        set -l word $words[$index]
        for name in $argv
            if test "$word" = $name
                set format $words[(math $index + 1)]
            else if string match -q -- "$name=*" $word
                set format (string replace -- "$name=" '' $word)
            else if test (string length -- $name) -eq 2; and string match -q -- "$name*" $word
                set format (string sub -s 3 -- $word)
            end
        end
    end
    echo $format
end

# name=value,name=value: the last one is completed.
function __blk_format_options
    set -l format (__blk_format $argv)
    set -l token (string replace -r -- '^(-o|--[a-z-]+=)' '' (commandline -ct))
    set -l before (string match -r -- '^.*,' $token)
    set -l item (string replace -r -- '^.*,' '' $token)
    if string match -q -- '*=*' $item
        set -l name (string replace -r -- '=.*$' '' $item)
        __blk_format_option_values $format $name | string replace -r '^' -- "$before$name="
    else
        __blk_format_option_names $format | string replace -r '^' -- "$before"
    end
end

function __blk_io_line
    set -l token (string trim -l -c '"\\'' -- (commandline -ct))
    set -l words (string split ' ' -- $token)
    if test (count $words) -le 1
        __blk_io_commands
    else if test (count $words) -eq 2; and test $words[1] = help
        __blk_io_commands | string replace -r '^' -- 'help '
    else if string match -q -- '-*' $words[-1]
        __blk_io_options $words[1] | string replace -r '^' -- (string join ' ' -- $words[1..-2])' '
    end
end"""


def script() -> str:
    """The completion script."""
    return "\n".join([_HEAD, *_lines(), ""])


def _lines() -> Iterator[str]:
    yield from _io_tables()
    yield from _format_tables()
    yield ""
    yield "complete -c blk -f"
    for option in model.program_options():
        yield _option("__blk_is", option, None)
    for command in model.commands():
        yield ""
        about = _quoted(model.summary(command))
        yield f"complete -c blk -n __blk_is -a {command.name} -d {about}"
        condition = _quoted(f"__blk_is {command.name}")
        yield from _arguments(condition, command)
        for option in command.options:
            yield _option(condition, option, model.format_option(command))


def _arguments(condition: str, command: Command) -> Iterator[str]:
    words = model.argument_words(command)
    if words:
        yield f"complete -c blk -n {condition} -a {_quoted(' '.join(words))}"
    if model.takes_files(command) or any(word.endswith("=") for word in words):
        yield f"complete -c blk -n {condition} -F"
    if any(option.long == "image-opts" for option in command.options):
        words = [f"driver={name}" for name in model.format_options()] + ["file.filename="]
        yes = condition[:-1] + "; and __blk_has --image-opts'"
        yield f"complete -c blk -n {yes} -a {_quoted(' '.join(words))}"


def _option(condition: str, option: Option, format_option: Option | None) -> str:
    words = ["complete -c blk", f"-n {condition}"]
    words += [f"-s {letter}" for letter in option.shorts]
    words += [f"-l {long}" for long in option.longs]
    if option.value:
        words.append(_value(model.value_kind(option), format_option))
    elif option.choices:
        words.append(f"-f -a {_quoted(' '.join(option.choices))}")
    elif option.optional:
        words.append("-F")
    return " ".join([*words, f"-d {_quoted(option.help)}"])


def _value(kind: str, format_option: Option | None) -> str:
    """The value of an option; -x: there is one, and it is no file."""
    if kind.startswith("words:"):
        return f"-x -a {_quoted(kind.removeprefix('words:'))}"
    chosen = " ".join(spellings(format_option)) if format_option else ""
    return {
        "file": "-r -F",
        "format": f"-x -a {_quoted(' '.join(model.format_options()))}",
        "cache": f"-x -a {_quoted(' '.join(model.cache_modes()))}",
        "options": f"-x -a '(__blk_format_options {chosen})'",
        "io": "-x -a '(__blk_io_line)'",
    }.get(kind, "-x")


def _io_tables() -> Iterator[str]:
    yield from ("", "function __blk_io_commands")
    commands = all_commands()
    for name, about in sorted({(each.name, each.about) for each in commands.values()}):
        yield f"    printf '%s\\t%s\\n' {name} {_quoted(about)}"
    yield from ("end", "", "function __blk_io_options", "    switch $argv[1]")
    for name, command in commands.items():
        if command.options:
            yield f"        case {_quoted(name)}"
        for option in command.options:
            yield f"            printf '%s\\t%s\\n' -{option.short} {_quoted(option.help)}"
    yield from ("    end", "end")


def _format_tables() -> Iterator[str]:
    formats = model.format_options()
    yield from ("", "function __blk_format_option_names", "    switch $argv[1]")
    for name, options in formats.items():
        yield f"        case {name}"
        for option in options:
            yield f"            printf '%s\\t%s\\n' {option.name}= {_quoted(option.help)}"
    yield from ("    end", "    printf '%s\\t%s\\n' help 'list the options'", "end")
    yield from ("", "function __blk_format_option_values", '    switch "$argv"')
    for name, options in formats.items():
        for option in options:
            kind = model.create_option_kind(option)
            words = list(formats) if kind == "format" else kind.removeprefix("words:").split()
            if kind == "format" or kind.startswith("words:"):
                yield f"        case '{name} {option.name}'"
                yield f"            printf '%s\\n' {' '.join(words)}"
            elif kind == "file":
                yield f"        case '{name} {option.name}'"
                yield "            set -l path (commandline -ct | string replace -r '^.*=' '')"
                yield "            __fish_complete_path $path"
    yield from ("    end", "end")


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
