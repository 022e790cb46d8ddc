# SPDX-License-Identifier: Apache-2.0
"""Command lines put together at random, right ones and ones with a single mistake.

Where a line has more than one mistake, which is told depends on what is looked at first; so there
is at most one that is meant. Some choices contradict each other, which is a mistake as well.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

NAMES = ("data.qed", "empty.qed", "longer.qed", "over.qed", "top.qed", "folder/far.qed", "data.raw")
WRONG_NAMES = ("nonexistent", "none/image")
SIZES = ("1M", "2M", "65536", "1.5M", "3k", "0")
WRONG_SIZES = ("foo", "1X", "-- -1", "''", "99999999999G")


@dataclass(frozen=True)
class Choice:
    """Ways to give an option that are right, and ways that are wrong."""

    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grammar:
    """A command: its options, each given or not, and what its arguments are."""

    options: tuple[Choice, ...]
    arguments: tuple[Choice, ...]
    options_first: bool = False
    """The last argument is read before the options are."""


FORMAT = Choice(("-f qed", "-fqed"), ("-f raw", "-f foo", "-f"))
SHORT_FORMAT = Choice(("-f qed",), ("-f foo", "-f"))
QUIET = Choice(("-q",))
SHARE = Choice(("-U", "--force-share"))
CACHE = Choice(
    ("-t none", "-t writethrough", "-t unsafe", "-t writeback", "-t directsync"), ("-t foo",)
)
SOURCE_CACHE = Choice(("-T none", "-T writeback", "-T unsafe"), ("-T foo", "-T"))
OUTPUT = Choice(("--output=human", "--output human"), ("--output=foo", "--output"))
JSON = Choice(("--output=json", "--output=human"))
OBJECT = Choice(
    ("--object secret,id=a,data=x", "--object qom-type=secret,id=a,data=x"),
    ("--object secret,data=x", "--object foo,id=a", "--object id=a"),
)
UNKNOWN = Choice((), ("-z", "--foo", "--foo=1"))
IMAGE = Choice(NAMES, WRONG_NAMES)
NEW = Choice(("new.img", "folder/new.img", "data.raw"), ("none/new.img",))
RATE = Choice(("-r 1G", "-r 0"), ("-r foo",))

GRAMMARS = {
    "info": Grammar(
        (FORMAT, JSON, OUTPUT, SHARE, Choice(("--backing-chain",)), OBJECT, UNKNOWN), (IMAGE,)
    ),
    "check": Grammar(
        (
            FORMAT,
            QUIET,
            OUTPUT,
            Choice(("-r all", "-r leaks", "--repair=all"), ("-r foo", "-r")),
            SOURCE_CACHE,
            OBJECT,
            UNKNOWN,
        ),
        (IMAGE,),
    ),
    "map": Grammar(
        (
            FORMAT,
            Choice(("-s 64k", "-s 1000", "--start-offset=1M", "-s 3M"), ("-s foo",)),
            Choice(("-l 4k", "-l 100000", "--max-length=1M", "-l 0"), ("-l -1", "-l x")),
            JSON,
            SHARE,
            OBJECT,
            UNKNOWN,
        ),
        (IMAGE,),
    ),
    "create": Grammar(
        (
            Choice(("-f qed", "-f raw", "-fqed"), ("-f foo",)),
            QUIET,
            Choice(
                ("-o cluster_size=4k -f qed", "-o table_size=2 -f qed", "-o nocow=off"),
                ("-o foo=1", "-o ,", "-o size=foo", "-o nocow=x", "-o"),
            ),
            Choice(("-b data.qed -F qed -f qed", "-b data.raw -F raw -f qed"), ("-b nonexistent",)),
            Choice(("-u",)),
            OBJECT,
            UNKNOWN,
        ),
        (NEW, Choice(SIZES, WRONG_SIZES)),
    ),
    "compare": Grammar(
        (
            FORMAT,
            Choice(("-F qed",), ("-F foo", "-F")),
            QUIET,
            Choice(("-s",)),
            SOURCE_CACHE,
            SHARE,
            UNKNOWN,
        ),
        (IMAGE, IMAGE),
    ),
    "convert": Grammar(
        (
            FORMAT,
            Choice(("-O qed", "-O raw", "-Oqed"), ("-O foo",)),
            QUIET,
            Choice(("-o cluster_size=4k -O qed", "-o nocow=off"), ("-o foo=1", "-o ,")),
            Choice(("-S 0", "-S 64k", "-S 512"), ("-S 1", "-S foo", "-S 32M")),
            Choice(("-m 3", "-m 16", "-m 1"), ("-m 0", "-m 99", "-m x")),
            Choice(("-W",)),
            Choice((), ("-c",)),
            Choice(("-C",)),
            CACHE,
            SOURCE_CACHE,
            Choice(("-B data.qed -F qed -O qed",), ("-B data.qed",)),
            Choice((), ("--target-is-zero", "--target-image-opts", "--skip-broken-bitmaps")),
            RATE,
            Choice(("--salvage",)),
            Choice((), ("--bitmaps",)),
            SHARE,
            OBJECT,
            UNKNOWN,
        ),
        (IMAGE, NEW),
    ),
    "resize": Grammar(
        (
            FORMAT,
            Choice(("--shrink -f raw",)),
            QUIET,
            Choice(("--preallocation=off", "--preallocation=full -f raw"), ("--preallocation=x",)),
            OBJECT,
            UNKNOWN,
        ),
        (IMAGE, Choice(("2M", "+1M", "4M", "+0"), ("512", "-512k", "foo", "0", "+x"))),
        options_first=True,
    ),
    "rebase": Grammar(
        (
            FORMAT,
            Choice(
                ("-b data.qed -F qed", "-b empty.qed -F qed", "-b data.raw -F raw", "-b ''"),
                ("-b nonexistent -F qed", "-b data.qed", "-b data.qed -F foo", "-b"),
            ),
            Choice(("-b longer.qed -F qed",)),
            Choice(("-u",)),
            QUIET,
            CACHE,
            SOURCE_CACHE,
            UNKNOWN,
        ),
        (Choice(("over.qed", "top.qed", "folder/far.qed", "data.qed"), WRONG_NAMES),),
    ),
    "commit": Grammar(
        (
            FORMAT,
            Choice(("-b data.qed", "-b over.qed"), ("-b nonexistent", "-b")),
            Choice(("-d",)),
            QUIET,
            CACHE,
            RATE,
            OBJECT,
            UNKNOWN,
        ),
        (IMAGE,),
    ),
    "measure": Grammar(
        (
            Choice(("-f qed", "-fqed"), ("-f raw", "-f foo")),
            Choice(("-O raw",), ("-O foo",)),
            Choice((), ("--size 1M", "--size foo")),
            Choice(("--output=human", "--output=json"), ("--output=foo",)),
            Choice((), ("-o foo=1", "-o ,", "-o help")),
            SHARE,
            OBJECT,
        ),
        (IMAGE,),
    ),
    "dd": Grammar(
        (
            SHORT_FORMAT,
            Choice(("-O qed", "-O raw"), ("-O foo",)),
            Choice(("bs=4k", "bs=1000", "bs=64k", "bs=1M"), ("bs=0", "bs=x", "bs=4G")),
            Choice(("count=1", "count=0", "count=100"), ("count=x",)),
            Choice(("skip=1", "skip=3", "skip=5000"), ("skip=-1",)),
            Choice((), ("seek=1", "conv=notrunc", "foo")),
            SHARE,
            OBJECT,
            UNKNOWN,
        ),
        (
            Choice(tuple(f"if={name}" for name in NAMES), ("if=nonexistent",)),
            Choice(("of=new.img", "of=folder/new.img"), ("of=none/new.img",)),
        ),
    ),
    "bench": Grammar(
        (
            SHORT_FORMAT,
            Choice(("-c 10", "-c 100", "-c 0"), ("-c x", "-c -1")),
            Choice(("-d 1", "-d 64", "-d 7"), ("-d x",)),
            Choice(("-s 4k", "-s 512", "-s 1000"), ("-s foo", "-s 4G")),
            Choice(("-S 64k", "-S 300k"), ("-S x",)),
            Choice(("-o 64k", "-o 1000"), ("-o x",)),
            Choice(("-w", "-w --pattern 7", "-w --pattern 0xff"), ("-w --pattern 256",)),
            Choice(("-w --flush-interval 100",), ("-w --flush-interval x",)),
            Choice(("--no-drain",)),
            Choice(
                ("-t none", "-t writeback", "-t unsafe", "-n -t none"),
                ("-t foo", "-n -t writeback"),
            ),
            Choice(("-i threads",), ("-i foo",)),
            QUIET,
            OBJECT,
            UNKNOWN,
        ),
        (Choice(("-c 50 data.qed", "-c 50 over.qed", "-c 50 longer.qed"), ("nonexistent",)),),
    ),
    "snapshot": Grammar(
        (
            Choice(("-l",), ("-c a", "-a a", "-d a", "-l -c a")),
            QUIET,
            SHARE,
            OBJECT,
            UNKNOWN,
        ),
        (Choice(NAMES[:-1], WRONG_NAMES),),
    ),
    "bitmap": Grammar(
        (
            SHORT_FORMAT,
            Choice(("--add", "--remove", "--clear", "--enable", "--disable", "--merge b")),
            Choice(("--add -g 64k", "--add -g 512"), ("--add -g x", "--add -g 1000")),
            Choice((), ("-b over.qed", "-F qed")),
            OBJECT,
            UNKNOWN,
        ),
        (Choice(NAMES[:-1], WRONG_NAMES), Choice(("b",), ("''",))),
    ),
    "amend": Grammar(
        (
            FORMAT,
            Choice(("-o size=1M", "-o foo=1"), ("-o ,", "-o")),
            CACHE,
            Choice(("--force",)),
            QUIET,
            UNKNOWN,
        ),
        (Choice(NAMES[:-1], WRONG_NAMES),),
    ),
}
OPTIONS_MAX = 4


def random_line(command: str, rng: random.Random) -> str:
    """A line with up to OPTIONS_MAX options and one mistake."""
    grammar = GRAMMARS[command]
    count = rng.randint(0, min(OPTIONS_MAX, len(grammar.options)))
    chosen = rng.sample(grammar.options, k=count)
    wrong = rng.choice([None, None, *chosen, *grammar.arguments])
    options = [_pick(choice, choice is wrong, rng) for choice in chosen]
    arguments = [_pick(choice, choice is wrong, rng) for choice in grammar.arguments]
    if rng.random() < 0.05:
        arguments = arguments[:-1] if rng.random() < 0.5 else [*arguments, arguments[-1]]
    words = [words for words in options if words]
    if grammar.options_first:
        return " ".join([command, *words, *arguments])
    if any("-- " in argument for argument in arguments):
        return " ".join([command, *words, *arguments])
    parts = words + arguments
    order = sorted(range(len(words)), key=lambda _: rng.random())
    places = [*order, *range(len(words), len(parts))]
    if rng.random() < 0.5:
        places = _interleaved(places, len(words), rng)
    return " ".join([command, *(parts[place] for place in places)])


def _pick(choice: Choice, wrong: bool, rng: random.Random) -> str:
    if wrong and choice.wrong:
        return rng.choice(choice.wrong)
    return rng.choice(choice.right) if choice.right else ""


def _interleaved(places: list[int], words: int, rng: random.Random) -> list[int]:
    """Options anywhere among the arguments, which keep their order."""
    options = [place for place in places if place < words]
    result = [place for place in places if place >= words]
    for option in options:
        result.insert(rng.randint(0, len(result)), option)
    return result
