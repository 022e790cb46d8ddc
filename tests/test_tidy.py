# SPDX-License-Identifier: Apache-2.0
"""Style as a test: the rules of the house that no linter knows, each with a proof that it bites."""

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

import pytest

from tests.support.source import FACADE, PACKAGE, ROOT, Finding, Source, project_sources

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
MAY_IMPORT = {
    "base": {"base"},
    "core": {"base", "core"},
    "nbd": {"base", "nbd"},
    "protocols": {"base", "core", "nbd"},
    "formats": {"base", "core"},
    "filters": {"base", "core"},
    "ops": {"base", "core", "ops"},
    "jobs": {"base", "core", "ops", "jobs"},
    "export": {"base", "core", "nbd", "export"},
    "qmp": {"base", "core", "nbd", "ops", "jobs", "export", "qmp"},
    "testing": {"base", "core", "protocols", "filters", "testing"},
    FACADE: {"base", "core", "ops", "jobs", FACADE},
    "cli": {"base", "core", "nbd", "ops", "jobs", "export", "qmp", FACADE, "cli"},
}
DRIVERS = {"formats", "protocols", "filters"}
"""Layers whose modules import, of their own layer, only their family: file and file_locks."""
WHOLE_LAYER = {"qmp": {"msgspec"}}
"""Packages that a layer is made of: whoever imports the layer asks for them."""
VERSION = f"{PACKAGE}._version"
"""Read by the build, and by every layer that introduces itself to a peer."""
MOCK_ASSERTION = "assert_(not_)?(any_)?(called|has_call)"
STRUCT_MODULES = {"base/layout.py", "nbd/wire.py", "protocols/file_locks.py"}
SPDX = "# SPDX-License-Identifier: Apache-2.0"

# Rules, each for one file.


def imports_point_down(source: Source) -> Iterator[Finding]:
    """No layer knows one above it, and no driver another: drivers are found by name."""
    # `python -m blocklayer` is the command under another name.
    layer = "cli" if source.module == f"{PACKAGE}.__main__" else source.layer
    if layer not in MAY_IMPORT:
        yield 1, f"a layer without a place: name {layer!r} in MAY_IMPORT"
        return
    for imported in source.imports():
        if imported.parts[0] != PACKAGE or imported.target.startswith(VERSION):
            continue
        target = (*imported.parts, "")[1]
        if target not in MAY_IMPORT:
            target = FACADE
        if layer in DRIVERS and target == layer:
            if family(imported.parts) != family(source.module.split(".")):
                yield imported.line, f"{source.module} imports another driver: {imported.target}"
        elif target not in MAY_IMPORT[layer]:
            yield imported.line, f"{layer} imports {imported.target}"


def family(parts: list[str]) -> str:
    """What a driver's modules have in common: formats.qed.tables is of `qed`."""
    return parts[2].split("_")[0] if len(parts) > 2 else ""


def other_packages_are_declared_and_deferred(source: Source) -> Iterator[Finding]:
    """The standard library suffices, but for what the project names and a function asks for."""
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"]]
    wanted += [each for extra in ("fast", "plot", "metrics", "daemon") for each in extras[extra]]
    names = (re.match(r"[\w-]+", requirement) for requirement in wanted)
    declared = {name.group().replace("-", "_") for name in names if name}
    for imported in source.imports():
        package = imported.parts[0]
        if package == PACKAGE or package in sys.stdlib_module_names:
            continue
        if source.layer == "base" or package not in declared:
            yield imported.line, f"{source.layer} imports {package}, which is not in its means"
        elif not imported.deferred and package not in WHOLE_LAYER.get(source.layer, ()):
            yield imported.line, f"import {package} where it is used: start-up must not wait for it"


def bytes_are_packed_by_layouts(source: Source) -> Iterator[Finding]:
    if str(source.inner_path) not in STRUCT_MODULES:
        for imported in source.imports():
            if imported.parts[0] == "struct":
                yield imported.line, "declare a layout (base/layout.py) instead of using struct"


def errors_are_not_swallowed(source: Source) -> Iterator[Finding]:
    broad = {"Exception", "BaseException"}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield node.lineno, "bare except"
            elif broad & names_in(node.type) and all(map(is_nothing, node.body)):
                yield node.lineno, "an exception of any kind is dropped"
        elif isinstance(node, ast.Call) and "suppress" in names_in(node.func):
            suppressed = set[str]().union(*map(names_in, node.args))
            if broad & suppressed:
                yield node.lineno, "an exception of any kind is suppressed"


def names_in(node: ast.AST) -> set[str]:
    found = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
    return found | {child.attr for child in ast.walk(node) if isinstance(child, ast.Attribute)}


def is_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass | ast.Continue) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def only_commands_print(source: Source) -> Iterator[Finding]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            yield node.lineno, "print() belongs to cli/ and to examples"


def nothing_is_mocked(source: Source) -> Iterator[Finding]:
    for imported in source.imports():
        if "mock" in imported.parts:
            yield imported.line, "use a real node of blocklayer.testing instead of a mock"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and re.match(MOCK_ASSERTION, node.attr):
            yield node.lineno, "assert on requests and bytes, not on calls"


def suppressions_name_a_code(source: Source) -> Iterator[Finding]:
    for line, comment in source.comments():
        if re.search(r"#\s*(ruff|flake8):\s*noqa|#\s*mypy:\s*(ignore|disable|allow)", comment):
            yield line, "a suppression for the whole file"
        elif re.search(r"#\s*noqa(?!:\s*[A-Z])|#\s*type:\s*ignore(?!\[)", comment):
            yield line, "a suppression without a code"


def comments_are_finished(source: Source) -> Iterator[Finding]:
    comments = source.comments() if source.is_python else enumerate(source.text.splitlines(), 1)
    for line, comment in comments:
        if re.search(r"\b(TODO|FIXME|XXX)\b", comment):
            yield line, "a reminder: do it, or write it where work is planned"


def sources_name_their_license(source: Source) -> Iterator[Finding]:
    if source.text.split("\n", 1)[0] != SPDX:
        yield 1, f"the first line is not {SPDX!r}"


def no_path_of_one_machine(source: Source) -> Iterator[Finding]:
    for line, text in enumerate(source.text.splitlines(), 1):
        if re.search(r"(?<![\w.~-])/(work|root|home/\w+)/", text):
            yield line, "an absolute path of somebody's machine"


# Which files each rule is for.

Rule = Callable[[Source], Iterator[Finding]]
Scope = Callable[[Source], bool]


def in_package(source: Source) -> bool:
    return source.is_python and source.inner_path is not None


def in_tests(source: Source) -> bool:
    return source.is_python and source.top == "tests"


def in_python(source: Source) -> bool:
    return source.is_python


def where_printing_is_odd(source: Source) -> bool:
    return in_tests(source) or (in_package(source) and source.layer != "cli")


def anywhere(source: Source) -> bool:
    return source.path.name != "LICENSE"


RULES: dict[Rule, Scope] = {
    imports_point_down: in_package,
    other_packages_are_declared_and_deferred: in_package,
    bytes_are_packed_by_layouts: in_package,
    errors_are_not_swallowed: in_python,
    only_commands_print: where_printing_is_odd,
    nothing_is_mocked: in_tests,
    suppressions_name_a_code: in_python,
    comments_are_finished: anywhere,
    sources_name_their_license: in_package,
    no_path_of_one_machine: anywhere,
}


# The rule for all files together.


def dead_modules(sources: Iterable[Source]) -> set[str]:
    """Modules of the package that nothing imports or names, starting from what users call."""
    package, others = {}, []
    for source in filter(in_python, sources):
        if in_package(source):
            package[source.module] = source
        else:
            others.append(source)

    def is_public(source: Source) -> bool:
        return source.layer == FACADE and not source.path.name.startswith("_")

    scripts = {target.split(":")[0] for target in PROJECT["scripts"].values()}
    pending = scripts | {name for name in package if name.endswith("__main__")}
    pending |= {PACKAGE, VERSION} | {name for name, source in package.items() if is_public(source)}
    # What is shipped for the tests of others is alive when our own use it.
    used = {i.target for source in filter(in_tests, others) for i in source.imports()}
    pending |= {target for target in used if target.startswith(f"{PACKAGE}.testing")}

    alive: set[str] = set()
    while pending:
        parts = pending.pop().split(".")
        prefixes = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
        for name in prefixes & package.keys() - alive:
            alive.add(name)
            pending |= {imported.target for imported in package[name].imports()}
            pending |= names_of_modules(package[name])
    return package.keys() - alive


def names_of_modules(source: Source) -> set[str]:
    """Strings that may name a module: `blocklayer.formats.raw`, `formats.raw`, `.raw:Raw`."""
    constants = (node.value for node in ast.walk(source.tree) if isinstance(node, ast.Constant))
    texts = {text.split(":")[0] for text in constants if isinstance(text, str)}
    dotted = {text for text in texts if re.fullmatch(r"\.?\w+(\.\w+)*", text)}
    here = source.module if source.path.name == "__init__.py" else source.module.rpartition(".")[0]
    return dotted | {f"{PACKAGE}.{text}" for text in dotted} | {f"{here}{text}" for text in dotted}


# The project keeps the rules.


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps(rule: Rule) -> None:
    scope = RULES[rule]
    findings = [
        f"{source.path}:{line}: {message}"
        for source in filter(scope, project_sources())
        for line, message in rule(source)
    ]
    assert not findings, "\n".join(["", *findings])


def test_the_project_has_no_dead_modules() -> None:
    assert sorted(dead_modules(project_sources())) == []


# The rules bite.

HERE = f"src/{PACKAGE}"
BITES: list[tuple[Rule, str, str]] = [
    (imports_point_down, "base/align.py", "import blocklayer.core"),
    (imports_point_down, "core/opening.py", "from blocklayer.formats import raw"),
    (imports_point_down, "core/opening.py", "def late():\n    import blocklayer.formats.raw"),
    (imports_point_down, "core/io.py", "import blocklayer"),
    (imports_point_down, "core/io.py", "from blocklayer import formats"),
    (imports_point_down, "nbd/wire.py", "from blocklayer.core import io"),
    (imports_point_down, "formats/raw.py", "from blocklayer.protocols.file import File"),
    (imports_point_down, "formats/raw.py", "from blocklayer.formats import qed"),
    (imports_point_down, "formats/qed/driver.py", "from blocklayer.formats.qcow2 import tables"),
    (imports_point_down, "protocols/file.py", "import blocklayer.protocols.memory"),
    (imports_point_down, "filters/fault.py", "from blocklayer.jobs import job"),
    (imports_point_down, "jobs/copy.py", "from blocklayer.formats.raw import Raw"),
    (imports_point_down, "jobs/copy.py", "from blocklayer.export import nbd_server"),
    (imports_point_down, "export/session.py", "from blocklayer.protocols import file"),
    (imports_point_down, "cli/info.py", "from blocklayer.formats.qed import layout"),
    (imports_point_down, "cli/info.py", "from blocklayer import testing"),
    (imports_point_down, "api.py", "from blocklayer.filters.fault import Fault"),
    (imports_point_down, "util/odds.py", ""),
    (other_packages_are_declared_and_deferred, "base/units.py", "def late():\n    import tqdm"),
    (other_packages_are_declared_and_deferred, "cli/progress.py", "import tqdm"),
    (other_packages_are_declared_and_deferred, "cli/progress.py", "def late():\n    import rich"),
    (bytes_are_packed_by_layouts, "formats/qed/tables.py", "import struct"),
    (bytes_are_packed_by_layouts, "formats/qed/tables.py", "from struct import pack"),
    (errors_are_not_swallowed, "core/io.py", "try: f()\nexcept: g()"),
    (errors_are_not_swallowed, "core/io.py", "try: f()\nexcept Exception: pass"),
    (errors_are_not_swallowed, "core/io.py", "try: f()\nexcept (OSError, BaseException): ..."),
    (errors_are_not_swallowed, "core/io.py", "with contextlib.suppress(Exception): f()"),
    (only_commands_print, "core/io.py", "print('here')"),
    (nothing_is_mocked, "/tests/core/test_io.py", "from unittest import mock"),
    (nothing_is_mocked, "/tests/core/test_io.py", "read.assert_called_once()"),
    (suppressions_name_a_code, "core/io.py", "# ruff: noqa: E501"),
    (suppressions_name_a_code, "core/io.py", "# mypy: ignore-errors"),
    (suppressions_name_a_code, "core/io.py", "import os  # noqa"),
    (suppressions_name_a_code, "core/io.py", "x = y  # type: ignore"),
    (comments_are_finished, "core/io.py", "x = 1  # TODO: more"),
    (comments_are_finished, "/README.md", "TODO: more"),
    (sources_name_their_license, "core/io.py", '"""No license."""'),
    (no_path_of_one_machine, "/docs/a.md", f"see `/{'home'}/ann/x`"),
    (no_path_of_one_machine, "/Makefile", f"cd /{'root'}/x"),
]
ALLOWS: list[tuple[Rule, str, str]] = [
    (imports_point_down, "base/align.py", "import os\nfrom blocklayer.base import units"),
    (imports_point_down, "core/opening.py", 'import_module("blocklayer.formats.raw")'),
    (imports_point_down, "formats/qed/driver.py", "from blocklayer.formats.qed import tables"),
    (imports_point_down, "protocols/file.py", "from blocklayer.protocols import file_locks"),
    (imports_point_down, "protocols/nbd_client.py", "from blocklayer.nbd import wire"),
    (imports_point_down, "nbd/wire.py", "from blocklayer._version import __version__"),
    (imports_point_down, "testing/crash.py", "import blocklayer.filters.fault"),
    (imports_point_down, "cli/info.py", "import blocklayer\nfrom blocklayer import api, open"),
    (imports_point_down, "__init__.py", "from blocklayer.core.disk import Disk"),
    (other_packages_are_declared_and_deferred, "cli/progress.py", "def late():\n    import tqdm"),
    (bytes_are_packed_by_layouts, "base/layout.py", "import struct"),
    (errors_are_not_swallowed, "core/io.py", "try: f()\nexcept OSError: pass"),
    (errors_are_not_swallowed, "core/io.py", "try: f()\nexcept Exception:\n    undo()\n    raise"),
    (only_commands_print, "cli/info.py", "print('size')"),
    (nothing_is_mocked, "/tests/core/test_io.py", "assert called == expected"),
    (suppressions_name_a_code, "core/io.py", "x = y  # type: ignore[attr-defined]  # noqa: E501"),
    (comments_are_finished, "core/io.py", "x = 'TODO'  # what is left"),
    (sources_name_their_license, "core/io.py", SPDX),
    (no_path_of_one_machine, "/docs/a.md", "https://example.org/work/x, tests/work/x"),
]


def findings_in(rule: Rule, path: str, text: str) -> list[Finding]:
    """Apply a rule to a file of the package, or by a leading slash to one of the project."""
    source = Source(PurePosixPath(path[1:] if path.startswith("/") else f"{HERE}/{path}"), text)
    return list(rule(source)) if RULES[rule](source) else []


@pytest.mark.parametrize(("rule", "path", "text"), BITES)
def test_a_rule_bites(rule: Rule, path: str, text: str) -> None:
    assert len(findings_in(rule, path, text)) == 1


@pytest.mark.parametrize(("rule", "path", "text"), ALLOWS)
def test_a_rule_allows(rule: Rule, path: str, text: str) -> None:
    assert findings_in(rule, path, text) == []


def test_a_dead_module_is_found() -> None:
    texts = {
        "__init__.py": "from blocklayer.core import opening",
        "api.py": "",
        "core/__init__.py": "",
        "core/opening.py": "import_module('blocklayer.formats.raw'); DRIVERS = ['formats.qed:Qed']",
        "core/island.py": "import blocklayer.core.lagoon",
        "core/lagoon.py": "import blocklayer.core.island",
        "formats/__init__.py": "",
        "formats/raw.py": "",
        "formats/qed/__init__.py": "from blocklayer.formats.qed.driver import Qed",
        "formats/qed/driver.py": "",
        "testing/model.py": "",
        "testing/forgotten.py": "",
        "cli/start.py": "",
    }
    sources = [Source(PurePosixPath(f"{HERE}/{path}"), text) for path, text in texts.items()]
    test = "from blocklayer.testing.model import ModelDisk\nimport blocklayer.core.island"
    sources.append(Source(PurePosixPath("tests/core/test_io.py"), test))
    names = {"core.island", "core.lagoon", "testing.forgotten"}
    assert dead_modules(sources) == {f"{PACKAGE}.{name}" for name in names}
