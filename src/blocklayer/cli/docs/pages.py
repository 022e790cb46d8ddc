# SPDX-License-Identifier: Apache-2.0
"""The manual as data: a page a command, of sections, of paragraphs, terms and examples.

`roff`, `markdown` and `webpage` give it a form; nothing is told in one of them alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from blocklayer.cli import usage
from blocklayer.cli.docs import model
from blocklayer.cli.failures import PROGRAM
from blocklayer.cli.getopt import Option
from blocklayer.cli.io import all_commands
from blocklayer.cli.io_help import HELP
from blocklayer.cli.io_language import IoCommand
from blocklayer.cli.parsing import Command


@dataclass(frozen=True)
class Term:
    """Spellings of one thing, what its value is called, and what it is."""

    names: list[str]
    value: str
    text: str


@dataclass(frozen=True)
class Example:
    """Lines to type, and what they do."""

    line: str
    text: str


@dataclass(frozen=True)
class Section:
    """A title, a line of usage, paragraphs, terms, examples, and sections further down."""

    title: str
    usage: str = ""
    paragraphs: list[str] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """A page of the manual."""

    name: str
    """`blk`, or `blk-create`."""
    summary: str
    synopsis: str
    sections: list[Section]

    @property
    def command(self) -> str:
        """As it is typed."""
        return self.name.replace("-", " ", 1)


def all_pages() -> list[Page]:
    """The program's page, and one for each command."""
    return [_program_page(), *map(_command_page, model.commands())]


# --- the program --------------------------------------------------------------------------------

_NAMES = """\
An image is named by its path. Where its format is not given with -f, it is found by the image's \
signature; what has none is raw. Give -f raw for raw images: whoever writes into one could give it \
another format's signature.

With --image-opts an image is named by options, as in driver=qed,file.filename=disk.qed. A name \
that begins with json: holds the same as a JSON object, and one that begins with file: is a path \
whatever it looks like."""

_CACHES = """\
writeback: the host's cache is used, and flushed when the guest or the command asks for it. none: \
the host's cache is passed by (O_DIRECT). writethrough: every write is flushed. directsync: both. \
unsafe: nothing is ever flushed."""


def _program_page() -> Page:
    about = [f"{usage.ABOUT}. Options and output are those of qemu-img and qemu-io."]
    commands = [
        Term([f"{PROGRAM} {command.name}"], "", model.summary(command))
        for command in model.commands()
    ]
    history = "Lines that were typed into 'blk io', the last 1000. Default: ~/.local/state."
    files = [Term(["$XDG_STATE_HOME/blocklayer/io_history"], "", history)]
    return Page(
        PROGRAM,
        "create, inspect, check, convert and change virtual disk images",
        f"{PROGRAM} [OPTIONS] COMMAND [COMMAND_OPTIONS]",
        [
            Section("Description", paragraphs=about),
            Section("Options", terms=_option_terms(model.program_options())),
            Section("Commands", terms=commands),
            Section("Names of images", paragraphs=usage.paragraphs(_NAMES)),
            Section("Sizes", paragraphs=[usage.SIZES]),
            Section("Cache modes", paragraphs=[_CACHES]),
            *_format_sections("Options of formats"),
            Section("Exit status", terms=_exit_terms(usage.EXITS)),
            Section("Files", terms=files),
        ],
    )


def _format_sections(title: str) -> Iterator[Section]:
    """What -o takes."""
    sections = [
        Section(name, terms=[Term([f"{o.name}="], o.kind, o.help) for o in options])
        for name, options in model.format_options().items()
    ]
    about = ["What -o takes, as name=value,name=value."]
    yield Section(title, paragraphs=about, sections=sections)


# --- commands -----------------------------------------------------------------------------------


def _command_page(command: Command) -> Page:
    groups = usage.option_groups(command)
    own = groups.pop(0)[1] if groups[0][0] == "Options" else []
    others = [Section(title, terms=_option_terms(options)) for title, options in groups]
    sections = [
        Section("Description", paragraphs=[command.about, *usage.paragraphs(command.details)]),
        Section("Options", terms=_option_terms(own), sections=others),
    ]
    if any(model.value_kind(option) == "options" for option in command.options):
        sections += _format_sections("Options of formats")
    if command.name == "io":
        sections.append(_io_section())
    sections.append(Section("Exit status", terms=_exit_terms(usage.exit_codes(command))))
    if command.examples:
        examples = [Example(f"{PROGRAM} {line}", text) for line, text in command.examples]
        sections.append(Section("Examples", examples=examples))
    synopsis = f"{PROGRAM} {command.name} [OPTIONS] {command.usage}"
    return Page(f"{PROGRAM}-{command.name}", model.summary(command), synopsis, sections)


def _option_terms(options: Iterable[Option]) -> list[Term]:
    return [Term(usage.spellings(option), option.value, option.help) for option in options]


def _exit_terms(codes: Iterable[tuple[int, str]]) -> list[Term]:
    return [Term([str(code)], "", text) for code, text in codes]


def _io_section() -> Section:
    """The language of `blk io`."""
    commands = {command.name: command for command in all_commands().values()}
    text = "Words are separated by spaces, without quotes. Numbers may be hexadecimal (0x200)."
    sections = [_io_command(command) for _, command in sorted(commands.items())]
    return Section("Commands", paragraphs=[text, usage.SIZES], sections=sections)


def _io_command(command: IoCommand) -> Section:
    details, examples = HELP.get(command.name, ("", ()))
    about = command.about[0].upper() + command.about[1:] + "."
    if command.alias:
        about += f" Short: {command.alias}."
    return Section(
        command.name,
        usage=f"{command.name} {command.usage}".rstrip(),
        paragraphs=[about, *usage.paragraphs(details)],
        terms=_option_terms(command.options),
        examples=[Example(line, text) for line, text in examples],
    )
