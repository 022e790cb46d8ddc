# SPDX-License-Identifier: Apache-2.0
"""The manual as one page of HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from blocklayer._version import __version__
from blocklayer.cli.docs.pages import Page, Section, Term

_STYLE = """
:root { color-scheme: light dark; --dim: color-mix(in srgb, currentColor 60%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
nav ul { columns: 12rem; padding-left: 1.2rem; }
h2 { border-top: 1px solid var(--dim); padding-top: 1rem; margin-top: 2.5rem; }
code, pre { font: 0.9em/1.45 ui-monospace, monospace; }
pre { padding: 0.6rem 0.8rem; overflow-x: auto; border: 1px solid var(--dim); border-radius: 4px; }
dt { margin-top: 0.5rem; }
dd { margin-left: 2rem; }
var { color: var(--dim); }
"""


def document(pages: Iterable[Page]) -> str:
    """The whole page."""
    return "\n".join([*_lines(list(pages)), ""])


def _lines(pages: list[Page]) -> Iterator[str]:
    yield from ("<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">')
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>blk {escape(__version__)}</title>"
    yield from (f"<style>{_STYLE}</style>", "</head>", "<body>", "<h1>The commands</h1>")
    yield from ("<nav><ul>", *map(_link, pages), "</ul></nav>")
    for page in pages:
        yield from _page(page)
    yield from ("</body>", "</html>")


def _link(page: Page) -> str:
    return f'<li><a href="#{escape(page.name)}">{escape(page.command)}</a></li>'


def _page(page: Page) -> Iterator[str]:
    yield f'<h2 id="{escape(page.name)}">{escape(page.command)}</h2>'
    yield f"<p>{escape(page.summary[0].upper() + page.summary[1:])}.</p>"
    yield f"<pre>{escape(page.synopsis)}</pre>"
    for section in page.sections:
        yield from _section(section, 3)


def _section(section: Section, level: int) -> Iterator[str]:
    if not (section.paragraphs or section.terms or section.examples or section.sections):
        return
    yield f"<h{level}>{escape(section.title)}</h{level}>"
    if section.usage:
        yield f"<pre>{escape(section.usage)}</pre>"
    for paragraph in section.paragraphs:
        yield f"<p>{escape(paragraph)}</p>"
    if section.terms:
        yield from ("<dl>", *map(_term, section.terms), "</dl>")
    for example in section.examples:
        yield f"<p>{escape(example.text)}</p><pre>{escape(example.line)}</pre>"
    for inner in section.sections:
        yield from _section(inner, level + 1)


def _term(term: Term) -> str:
    names = ", ".join(f"<code>{escape(name)}</code>" for name in term.names)
    value = f" <var>{escape(term.value)}</var>" if term.value else ""
    return f"<dt>{names}{value}</dt><dd>{escape(term.text)}</dd>"
