# SPDX-License-Identifier: Apache-2.0
"""Completion for zsh: specifications for its `_arguments`, `_describe` and `_values`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blocklayer.cli.docs import model
from blocklayer.cli.getopt import Option
from blocklayer.cli.io import all_commands
from blocklayer.cli.parsing import Command
from blocklayer.cli.usage import spellings

_HEAD = """\
#compdef blk
# SPDX-License-Identifier: Apache-2.0
# Completion of blk for zsh; made by 'blk completion zsh'. No program is started to complete."""

_TAIL = """
_blk() {
    local curcontext=$curcontext state line expl
    typeset -A opt_args
    _arguments -C -S -A '-*' \\
@OPTIONS@
        '1:command:_blk_commands' '*:: :->command' && return
    [[ $state == command ]] || return 1
    (( $+functions[_blk_$words[1]] )) || return 1
    curcontext=${curcontext%:*:*}:blk-$words[1]:
    _blk_$words[1]
}

_blk_image_options() {
    _values -s , 'option of the image' 'driver:format:(@FORMATS@)' 'file.filename:file:_files'
}

_blk_images() {
    if (( $words[(I)--image-opts] )); then _blk_image_options; else _files; fi
}

# A word, or several in quotes.
_blk_io_line() {
    compset -q
    if (( CURRENT == 1 )); then
        _blk_io_commands
    elif [[ $words[1] == help && CURRENT -eq 2 ]]; then
        _blk_io_commands
    elif [[ $PREFIX == -* ]]; then
        _blk_io_options $words[1]
    fi
}

if [[ $funcstack[1] == _blk ]]; then _blk "$@"; else compdef _blk blk; fi
"""


def script() -> str:
    """The completion script."""
    return "\n".join([_HEAD, *_lines()])


def _lines() -> Iterator[str]:
    commands = model.commands()
    abouts = [(command.name, model.summary(command)) for command in commands]
    yield from _descriptions("commands", "command", abouts)
    io_abouts = sorted({(command.name, command.about) for command in all_commands().values()})
    yield from _descriptions("io_commands", "command", io_abouts)
    yield from _io_options()
    yield from _format_options()
    for command in commands:
        yield from _command(command)
    tail = _TAIL.replace("@FORMATS@", " ".join(model.format_options()))
    own = (f"        {_spec(option, None)} \\" for option in model.program_options())
    yield tail.replace("@OPTIONS@", "\n".join(own))


def _descriptions(name: str, what: str, abouts: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A function that offers words with what they mean."""
    yield from ("", f"_blk_{name}() {{", "    local -a known=(")
    for word, about in abouts:
        yield f"        {_quoted(word.replace(':', chr(92) + ':') + ':' + about)}"
    yield from ("    )", f"    _describe {_quoted(what)} known", "}")


def _io_options() -> Iterator[str]:
    yield from ("", "_blk_io_options() {", "    local -a known", "    case $1 in")
    for name, command in all_commands().items():
        if command.options:
            known = (f"-{option.short}:{option.help}" for option in command.options)
            yield f"        {_quoted(name)}) known=({' '.join(map(_quoted, known))}) ;;"
    yield from ("    esac", "    _describe option known", "}")


def _format_options() -> Iterator[str]:
    """What -o takes; the arguments are the spellings of the option that chooses the format."""
    yield from ("", "_blk_format_options() {", "    local name format")
    yield "    for name; do format=${format:-${opt_args[$name]}}; done"
    yield "    case ${format:-raw} in"
    for name, options in model.format_options().items():
        specs = [_value_spec(option.name, option.help, _create_kind(option)) for option in options]
        specs.append(_quoted("help[list the options]"))
        yield f"        {name}) _values -s , {_quoted(f'option of {name}')} {' '.join(specs)} ;;"
    yield from ("    esac", "}")


def _create_kind(option: object) -> str:
    return model.create_option_kind(option)  # type: ignore[arg-type]


def _value_spec(name: str, text: str, kind: str) -> str:
    return _quoted(f"{name}[{_plain(text)}]:value:{_action(kind, None)}")


def _command(command: Command) -> Iterator[str]:
    yield from ("", f"_blk_{command.name}() {{", "    _arguments -s -S \\")
    for option in command.options:
        yield f"        {_spec(option, model.format_option(command))} \\"
    yield f"        {_quoted('*:' + _arguments(command))}"
    yield "}"


def _arguments(command: Command) -> str:
    words = model.argument_words(command)
    if command.words == ("COMMAND",):
        return "command:_blk_commands"
    if not words:
        return "file:_blk_images"
    if not words[0].endswith("="):
        return f"argument:({' '.join(words)})"
    specs = (f"{word[:-1]}:value:{'_files' if word in ('if=', 'of=') else ' '}" for word in words)
    return "operand: _values -S = operand " + " ".join(f'"{spec}"' for spec in specs)


def _spec(option: Option, format_option: Option | None) -> str:
    """One option for _arguments: spellings that exclude each other, its text, its value."""
    names = spellings(option)
    before = "'*'" if model.is_repeated(option) else _quoted(f"({' '.join(names)})")
    if option.value:
        names = [name + ("=" if name.startswith("--") else "+") for name in names]
    elif option.optional:
        return _optional_spec(option, before)
    spelled = names[0] if len(names) == 1 else f"{{{','.join(names)}}}"
    text = f"[{_plain(option.help)}]"
    if option.value:
        value = option.value.lower().partition(",")[0].replace(":", "")
        text += f":{value}:{_action(model.value_kind(option), format_option)}"
    return before + spelled + _quoted(text)


def _optional_spec(option: Option, before: str) -> str:
    """An option whose long spelling may have a value; the letter never has."""
    text = f"[{_plain(option.help)}]"
    value = f"::value:{_action(model.optional_kind(option), None)}"
    specs = [f"{before}--{option.long}=-{_quoted(text + value)}"]
    if option.short:
        specs.append(f"{before}-{option.short}{_quoted(text)}")
    return " ".join(specs)


def _action(kind: str, format_option: Option | None) -> str:
    """How zsh completes a kind of value."""
    if kind.startswith("words:"):
        return f"({kind.removeprefix('words:')})"
    chosen = " ".join(spellings(format_option)) if format_option else ""
    return {
        "file": "_files",
        "format": f"({' '.join(model.format_options())})",
        "cache": f"({' '.join(model.cache_modes())})",
        "options": f" _blk_format_options {chosen}",
        "io": "_blk_io_line",
    }.get(kind, " ")


def _plain(text: str) -> str:
    """Without what has a meaning for _arguments and _values."""
    for character in "\\[]:":
        text = text.replace(character, "\\" + character)
    return text


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
