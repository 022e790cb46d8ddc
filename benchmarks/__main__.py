# SPDX-License-Identifier: Apache-2.0
"""Run benches, and print what came out.

The exit code is 1 if the work of a side was wrong or did not run, and 0 otherwise: a target that
is not met is printed as that, and is not an error.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import pkgutil
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks import harness, machine, report
from benchmarks.images import Images
from benchmarks.memory import Settler
from benchmarks.process import CommandFailed

ROUNDS = 7
ROUNDS_QUICK = 3
TOOLS = ("qemu-img", "qemu-io", "cp")


def find_blk() -> list[str] | None:
    """The command that belongs to this interpreter, or None where blocklayer is not installed."""
    if importlib.util.find_spec("blocklayer") is None:
        return None
    script = Path(sys.executable).with_name("blk")
    return [str(script)] if script.exists() else [sys.executable, "-m", "blocklayer"]


def load_benches() -> None:
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if module.name.startswith("bench_"):
            importlib.import_module(f"benchmarks.{module.name}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help="topics, or topic/name; all if none is given")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"default: {ROUNDS}")
    parser.add_argument(
        "--output", nargs=2, metavar=("json", "FILE"), help="write the results as JSON, too"
    )
    parser.add_argument("--quick", action="store_true", help="small images, few rounds")
    parser.add_argument(
        "--keep-dir", type=Path, metavar="DIR", help="work here, and keep the images"
    )
    parser.add_argument("--list", action="store_true", help="print the names, and stop")
    # `--output=json FILE` is how the command line is written everywhere here; argparse knows an
    # option of two values only without the sign.
    words = [part for word in argv for part in split_output(word)]
    arguments = parser.parse_args(words)
    if arguments.output is not None and arguments.output[0] != "json":
        parser.error(f"--output={arguments.output[0]}: only json is known")
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    return arguments


def split_output(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--output=") else [word]


@contextmanager
def scratch_directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="blocklayer-bench-") as name:
            yield Path(name)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_benches(
    names: Sequence[str], context: harness.Context, *, rounds: int
) -> list[harness.Outcome]:
    tools = harness.Tools(Settler(context.directory), progress)
    outcomes = []
    for name in names:
        try:
            for comparison in harness.BENCHES[name](context):
                outcomes.append(harness.run_comparison(comparison, rounds, tools))
        except harness.Skipped as reason:
            outcomes.append(harness.Outcome(name, skipped=str(reason)))
        except (CommandFailed, harness.VerificationFailed) as error:
            outcomes.append(harness.Outcome(name, failure=str(error)))
    return outcomes


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    load_benches()
    try:
        names = harness.select(arguments.names, harness.BENCHES)
    except ValueError as error:
        progress(str(error))
        return 2
    if arguments.list:
        print("\n".join(names))
        return 0
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        progress(f"the peers are not installed: {', '.join(missing)}")
        return 2
    rounds = arguments.rounds or (ROUNDS_QUICK if arguments.quick else ROUNDS)
    with scratch_directory(arguments.keep_dir) as directory:
        blk = find_blk()
        about = machine.describe(directory, blk)
        about["Run"] = f"{rounds} rounds" + (", quick: small images" if arguments.quick else "")
        print("\n".join(report.describe_machine(about)), flush=True)
        context = harness.Context(directory, Images(directory), arguments.quick, blk)
        outcomes = run_benches(names, context, rounds=rounds)
    print(report.render(outcomes))
    if arguments.output is not None:
        asked = {"names": names, "rounds": rounds, "quick": arguments.quick}
        write_json(Path(arguments.output[1]), report.to_json(about, asked, outcomes))
    return 1 if any(outcome.failure is not None for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
