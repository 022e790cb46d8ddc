# SPDX-License-Identifier: Apache-2.0
"""The project's own files, as the tests of its style see them."""

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
PACKAGE = "blocklayer"
FACADE = "the public face"
"""The layer of the modules directly in the package."""
TREES = ("src", "tests", "benchmarks", "examples", "docs", "tools", ".ci")
SUFFIXES = {"", ".py", ".typed", ".md", ".toml", ".yaml", ".sh", ".txt"}
NOT_OURS = {".git", ".coverage", "__pycache__"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

Finding = tuple[int, str]
"""A line, and what is wrong there."""


@dataclass(frozen=True)
class Import:
    line: int
    target: str
    """Absolute and dotted, with the imported name: `blocklayer.core.io.read`."""
    deferred: bool
    """Inside a function."""

    @property
    def parts(self) -> list[str]:
        return self.target.split(".")


@dataclass(frozen=True)
class Source:
    """One text file of the project: where it stands, and what it says."""

    path: PurePosixPath
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def inner_path(self) -> PurePosixPath | None:
        """The path inside the package; None for a file that is not part of it."""
        package = PurePosixPath("src", PACKAGE)
        return self.path.relative_to(package) if self.path.is_relative_to(package) else None

    @property
    def top(self) -> str:
        return self.path.parts[0]

    @property
    def is_python(self) -> bool:
        return self.path.suffix == ".py"

    @property
    def module(self) -> str:
        """The dotted name, of a module of the package."""
        assert self.inner_path is not None
        dotted = ".".join((PACKAGE, *self.inner_path.with_suffix("").parts))
        return dotted.removesuffix(".__init__")

    @property
    def layer(self) -> str:
        assert self.inner_path is not None
        return FACADE if len(self.inner_path.parts) == 1 else self.inner_path.parts[0]

    def imports(self) -> Iterator[Import]:
        functions = (n for n in ast.walk(self.tree) if isinstance(n, FUNCTIONS))
        deferred = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, "ruff bans relative imports"
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for target in targets:
                yield Import(node.lineno, target, id(node) in deferred)

    def comments(self) -> Iterator[Finding]:
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


def project_sources() -> Iterator[Source]:
    """Every text file that is written by hand."""
    paths = [path for path in ROOT.iterdir() if path.is_file()]
    paths += [path for tree in TREES for path in (ROOT / tree).rglob("*") if path.is_file()]
    for path in sorted(paths):
        if path.suffix in SUFFIXES and NOT_OURS.isdisjoint(path.parts):
            yield Source(PurePosixPath(path.relative_to(ROOT)), path.read_text("utf-8"))
