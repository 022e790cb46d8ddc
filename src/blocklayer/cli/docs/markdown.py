# SPDX-License-Identifier: Apache-2.0
"""The manual as one page of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from blocklayer.cli.docs.pages import Example, Page, Section, Term

_HEAD = """\
<!-- Made by 'make docs' from what the commands declare: edit that, not this. -->

# The commands
"""


def document(pages: Iterable[Page]) -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(line for page in pages for line in _page(page))])


def _page(page: Page) -> Iterator[str]:
    yield from (f"## {page.command}", "", f"{_sentence(page.summary)}", "")
    yield from ("```", page.synopsis, "```", "")
    for section in page.sections:
        yield from _section(section, "###")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{_escaped(text[1:])}."


def _section(section: Section, heading: str) -> Iterator[str]:
    if not (section.paragraphs or section.terms or section.examples or section.sections):
        return
    yield from (f"{heading} {_escaped(section.title)}", "")
    if section.usage:
        yield from ("```", section.usage, "```", "")
    for paragraph in section.paragraphs:
        yield from (_escaped(paragraph), "")
    if section.terms:
        yield from _table(section.terms)
    for example in section.examples:
        yield from _example(example)
    for inner in section.sections:
        yield from _section(inner, heading + "#")


def _table(terms: list[Term]) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    for term in terms:
        names = ", ".join(f"`{_cell(name)}`" for name in term.names)
        value = f" *{_cell(_escaped(term.value))}*" if term.value else ""
        yield f"| {names}{value} | {_cell(_escaped(term.text))} |"
    yield ""


def _example(example: Example) -> Iterator[str]:
    yield from (_escaped(example.text), "", "```sh", example.line, "```", "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _escaped(text: str) -> str:
    """What means something to Markdown, literally."""
    return re.sub(r"([\\`*_<>\[\]])", r"\\\1", text)
