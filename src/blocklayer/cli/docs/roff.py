# SPDX-License-Identifier: Apache-2.0
"""Manual pages in the man(7) language."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

from blocklayer._version import __version__
from blocklayer.cli.docs.pages import Page, Section, Term

_ESCAPES = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}


def manual_page(page: Page, others: Iterable[str], date: str) -> str:
    """The source of one page; `others` are the names of those it points to."""
    return "\n".join([*_lines(page, list(others), date), ""])


def _lines(page: Page, others: list[str], date: str) -> Iterator[str]:
    yield '.\\" SPDX-License-Identifier: Apache-2.0'
    yield f'.TH {page.name.upper()} 1 "{date}" "blocklayer {__version__}" "blocklayer"'
    yield ".SH NAME"
    yield f"{_text(page.name)} \\- {_text(page.summary)}"
    yield ".SH SYNOPSIS"
    yield f"\\fB{_text(page.command)}\\fR{_usage(page.synopsis.removeprefix(page.command))}"
    for section in page.sections:
        yield from _section(section, ".SH")
    yield ".SH SEE ALSO"
    yield ",\n".join(f".BR {_text(name)} (1)" for name in others).replace(" (1),", " (1),")


def _section(section: Section, macro: str) -> Iterator[str]:
    title = section.title.upper() if macro == ".SH" else section.title
    yield f'{macro} "{_text(title)}"'
    if section.usage:
        yield f"\\fB{_line(section.usage)}\\fR"
    for number, paragraph in enumerate(section.paragraphs):
        if number or section.usage:
            yield ".PP"
        yield from _wrapped(paragraph)
    for term in section.terms:
        yield from (".TP", _term(term), *_wrapped(term.text))
    before = section.usage or section.paragraphs or section.terms
    for example in section.examples:
        # There is no paragraph to begin directly under a heading.
        yield from (".PP",) if before or example is not section.examples[0] else ()
        yield from (".EX", f"\\fB{_line(example.line)}\\fR", ".EE", ".RS 4")
        yield from (*_wrapped(example.text), ".RE")
    for inner in section.sections:
        yield from _section(inner, ".SS")


def _term(term: Term) -> str:
    names = ", ".join(f"\\fB{_text(name)}\\fR" for name in term.names)
    if not term.value:
        return names
    space = "" if term.names[-1].endswith("=") else " "
    return f"{names}{space}\\fI{_text(term.value)}\\fR"


def _usage(text: str) -> str:
    """What stands for something else in italics."""
    return re.sub(r"\b([A-Z][A-Z0-9_]+)\b", r"\\fI\1\\fR", _text(text))


def _wrapped(text: str) -> list[str]:
    """A paragraph's lines; short ones are what people and tools expect in such files."""
    return list(map(_line, textwrap.wrap(text, 66, break_on_hyphens=False)))


def _line(text: str) -> str:
    """A line of text, and no request whatever it begins with."""
    return ("\\&" if text.startswith((".", "'")) else "") + _text(text)


def _text(text: str) -> str:
    """With everything in it that means something to roff said otherwise."""
    return "".join(_ESCAPES.get(character, character) for character in text)
