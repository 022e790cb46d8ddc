"""query-qmp-schema: complete, in QEMU's form, and like that of QEMU's own daemon."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from blocklayer.core import drivers
from blocklayer.qmp.commands import all_commands
from blocklayer.qmp.introspect import schema
from blocklayer.qmp.schema.events import EVENTS
from tests.qmp.daemons import QEMUS, Conversation
from tests.support import needs
from tests.support.source import ROOT

Schema = dict[str, dict[str, Any]]


def ours() -> Schema:
    entries = schema(all_commands().values(), EVENTS)
    return {entry["name"]: entry for entry in entries}


def references(entry: dict[str, Any]) -> list[str]:
    """Names of types that an entry refers to."""
    kind = entry["meta-type"]
    if kind == "command":
        return [entry["arg-type"], entry["ret-type"]]
    if kind == "event":
        return [entry["arg-type"]]
    if kind == "array":
        return [entry["element-type"]]
    members = entry.get("members", []) if kind in ("object", "alternate") else []
    return [each["type"] for each in [*members, *entry.get("variants", [])]]


def test_names_are_unique_and_every_type_is_described() -> None:
    entries = schema(all_commands().values(), EVENTS)
    known = {entry["name"] for entry in entries}
    assert len(known) == len(entries)
    assert {name for entry in entries for name in references(entry)} <= known


def test_types_are_masked() -> None:
    for name, entry in ours().items():
        if entry["meta-type"] in ("object", "enum", "alternate"):
            assert name.isdigit()


def test_the_tag_is_a_member_and_its_values_are_the_cases() -> None:
    known = ours()
    for entry in known.values():
        if "tag" in entry:
            (tag,) = [each for each in entry["members"] if each["name"] == entry["tag"]]
            values = known[tag["type"]]["values"]
            assert {each["case"] for each in entry["variants"]} == set(values)


def test_every_driver_is_declared() -> None:
    known = ours()
    argument = known[known["blockdev-add"]["arg-type"]]
    cases = {each["case"] for each in argument["variants"]}
    assert cases == set(drivers._MODULES)


# --- QEMU's ---------------------------------------------------------------------------------------


def members(known: Schema, name: str) -> dict[str, Any]:
    """Members of an object by name: (type in a few words, required)."""
    found = {}
    for each in known[name].get("members", ()):
        found[each["name"]] = (shape(known, each["type"]), "default" not in each)
    return found


def shape(known: Schema, name: str) -> Any:
    """A type in a few words, one level deep: names of types mean nothing."""
    entry = known[name]
    kind = entry["meta-type"]
    if kind == "builtin":
        return entry["json-type"]
    if kind == "array":
        return ["list of", shape(known, entry["element-type"])]
    if kind == "enum":
        return "enum"
    if kind == "alternate":
        return sorted(str(shape(known, each["type"])) for each in entry["members"])
    return "object"


MORE_HERE = {
    "blockdev-mirror": {"target-is-zero"},  # of QEMU 10
}

LATER = {"block-job-change", "human-monitor-command", "query-status"}
"""Commands that QEMU's daemon 7.2 has not: they are of later ones, or of virtual machines."""

NOT_IMPLEMENTED = {
    "chardev-add": "monitors are made on the command line",
    "chardev-change": "monitors are made on the command line",
    "chardev-remove": "monitors are made on the command line",
    "chardev-send-break": "there are no serial lines",
    "qom-get": "there is no object model to look into",
    "qom-list": "there is no object model to look into",
    "qom-list-properties": "there is no object model to look into",
    "qom-list-types": "there is no object model to look into",
    "qom-set": "there is no object model to look into",
    "ringbuf-read": "there are no ring buffers",
    "ringbuf-write": "there are no ring buffers",
    "x-blockdev-change": "experimental, for quorum",
    "x-blockdev-set-iothread": "there are no I/O threads to choose",
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Schema:
    folder: Path = tmp_path_factory.mktemp("schema")
    with Conversation(folder, QEMUS) as talk:
        return {entry["name"]: entry for entry in talk.do("query-qmp-schema")}


@needs("qemu-storage-daemon")
def test_the_commands_are_qemus(theirs: Schema) -> None:
    def commands(known: Schema) -> set[str]:
        return {name for name, entry in known.items() if entry["meta-type"] == "command"}

    assert commands(ours()) - commands(theirs) == LATER
    assert commands(theirs) - commands(ours()) == set(NOT_IMPLEMENTED)


@needs("qemu-storage-daemon")
@pytest.mark.parametrize("name", sorted(all_commands().keys() - LATER))
def test_arguments_are_qemus(theirs: Schema, name: str) -> None:
    mine = ours()
    one = members(mine, mine[name]["arg-type"])
    other = members(theirs, theirs[name]["arg-type"])
    assert one.keys() - other.keys() == MORE_HERE.get(name, set())
    assert other.keys() - one.keys() == set()
    for member in one.keys() & other.keys():
        assert one[member] == other[member], member


@needs("qemu-storage-daemon")
@pytest.mark.parametrize("name", sorted(EVENTS.keys() - {"SHUTDOWN"}))
def test_events_are_qemus(theirs: Schema, name: str) -> None:
    mine = ours()
    assert members(mine, mine[name]["arg-type"]) == members(theirs, theirs[name]["arg-type"])


@needs("qemu-storage-daemon")
@pytest.mark.parametrize("name", ["file", "raw", "qed", "null-co", "blkverify", "copy-on-read"])
def test_options_of_drivers_are_among_qemus(theirs: Schema, name: str) -> None:
    def variant(known: Schema) -> dict[str, Any]:
        argument = known[known["blockdev-add"]["arg-type"]]
        (case,) = [each for each in argument["variants"] if each["case"] == name]
        return members(known, case["type"])

    mine, others = variant(ours()), variant(theirs)
    for member, (kind, required) in mine.items():
        assert others[member] == (kind, required), member


def tags(known: Schema, command: str) -> set[str]:
    """The cases of a command's argument: drivers, kinds of objects or of exports."""
    return {each["case"] for each in known[known[command]["arg-type"]]["variants"]}


@needs("qemu-storage-daemon")
@pytest.mark.parametrize("command", ["blockdev-add", "object-add", "block-export-add"])
def test_what_is_not_there_is_documented(theirs: Schema, command: str) -> None:
    page = (ROOT / "docs" / "daemon.md").read_text("utf-8")
    table = page.partition("### What is not there")[2]
    named = set(re.findall(r"`([\w-]+)`", table))
    missing = tags(theirs, command) - tags(ours(), command)
    assert missing - OF_MACHINES - named == set()
    refused = tags(ours(), command) & named
    assert refused <= {"blkdebug", "nbd", "qed", "tls-creds-psk"}, "these are there"


OF_MACHINES = {
    *("can-bus", "can-host-socketcan", "colo-compare", "cryptodev-backend", "input-barrier"),
    *("authz-listfile",),  # of 7.2 nobody can make one: the name of its kind is authz-list-file
    *("cryptodev-backend-builtin", "cryptodev-backend-lkcf"),
    *("cryptodev-vhost-user", "dbus-vmstate", "filter-buffer"),
    *("filter-dump", "filter-mirror", "filter-redirector", "filter-replay", "filter-rewriter"),
    *("input-linux", "memory-backend-epc", "memory-backend-file", "memory-backend-memfd"),
    *("memory-backend-ram", "pef-guest", "qtest", "rng-builtin", "rng-egd", "rng-random"),
    *("s390-pv-guest", "sev-guest", "virtio-gpu", "x-remote-object", "x-vfio-user-server"),
}
"""Objects that QEMU's schema has for virtual machines."""

OTHER_FEATURES = {
    ("blockdev-snapshot", "allow-write-only-overlay"): "an overlay that a job writes to is in use",
    ("<file>", "dynamic-auto-read-only"): "files are opened for writing at once, or not at all",
    ("<host_device>", "dynamic-auto-read-only"): "the same",
}


class Features:
    """What two schemas tell of what both have: ``(command(.member<case>, features, others)``."""

    def __init__(self, one: Schema, other: Schema) -> None:
        self.one, self.other = one, other
        self.found: set[tuple[str, str]] = set()
        self.common: set[tuple[str, str]] = set()
        self._seen: set[tuple[str, str]] = set()

    def look(self, path: str, one: dict[str, Any], other: dict[str, Any]) -> None:
        """At what is told of one thing."""
        mine, theirs = set(one.get("features", ())), set(other.get("features", ()))
        self.found |= {(path, each) for each in mine ^ theirs}
        self.common |= {(path, each) for each in mine & theirs}

    def compare(self, path: str, name: str, other_name: str) -> None:
        """Two types, where both are of one kind, and all that they have below them."""
        one, other = self.one[name], self.other[other_name]
        kind = one["meta-type"]
        if (name, other_name) in self._seen or kind != other["meta-type"]:
            return
        self._seen.add((name, other_name))
        self.look(path, one, other)
        if kind == "array":
            self.compare(path, one["element-type"], other["element-type"])
        if kind in ("object", "enum"):
            members = {each["name"]: each for each in other["members"]}
            for each in one["members"]:
                if same := members.get(each["name"]):
                    self.look(each["name"], each, same)
                    if kind == "object":
                        self.compare(each["name"], each["type"], same["type"])
        cases = {each["case"]: each["type"] for each in other.get("variants", ())}
        for each in one.get("variants", ()):
            if each["case"] in cases:
                self.compare(f"<{each['case']}>", each["type"], cases[each["case"]])


@needs("qemu-storage-daemon")
def test_features_are_qemus(theirs: Schema) -> None:
    mine = ours()
    features = Features(mine, theirs)
    for name in mine.keys() & theirs.keys():
        if mine[name]["meta-type"] == "command":
            features.look(name, mine[name], theirs[name])
            features.compare(f"{name}(", mine[name]["arg-type"], theirs[name]["arg-type"])
    assert features.found == OTHER_FEATURES.keys()
    told = {("base", "deprecated"), ("top", "deprecated"), ("drive-backup", "deprecated")}
    assert told | {("x-perf", "unstable"), ("x-dirty-bitmap", "unstable")} <= features.common
