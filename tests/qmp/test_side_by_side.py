"""The same conversations with QEMU's storage daemon: the answers agree, or the reason is known."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.qmp.daemons import OURS, QEMUS, Conversation
from tests.qmp.detail_scripts import DETAIL_SCRIPTS
from tests.qmp.differences import DIFFERENCES, Difference
from tests.qmp.graph_scripts import GRAPH_SCRIPTS
from tests.qmp.job_scripts import JOB_SCRIPTS, WAIT
from tests.qmp.scripts import SCRIPTS, Step
from tests.support import needs

pytestmark = [needs("qemu-storage-daemon", "qemu-img"), pytest.mark.slow]


def prepare(folder: Path) -> None:
    """The files that the scripts are about."""
    folder.mkdir()
    (folder / "base.raw").write_bytes(b"base" * 65536 + bytes(3 << 18))
    for line in (
        "-f qed t.qed 1M",
        "-f raw t.raw 1M",
        "-f raw u.raw 1M",
        "-f raw v.raw 1M",
        "-f qed -b base.raw -F raw top.qed",
    ):
        subprocess.run(["qemu-img", "create", "-q", *line.split()], cwd=folder, check=True)


def answers(folder: Path, program: tuple[str, ...], script: list[Step]) -> list[Any]:
    """What a daemon says, made comparable; at last the events, for scripts that wait for some."""
    prepare(folder)
    events: list[dict[str, Any]] = []
    found: list[Any] = []
    with Conversation(folder, program) as talk:
        for name, arguments in script:
            if name == WAIT:
                events += talk.events_to(arguments["event"], **arguments["members"])
                found.append(None)
            else:
                found.append(normal(name, talk.ask(name, arguments)))
        if events:
            talk.do("blockdev-add", driver="null-co", node_name="end")  # later events are in by now
            events += talk.events_so_far()
    return [*found, [normal_event(each) for each in without_rests(events)]]


def without_rests(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """QEMU's jobs rest for a moment whenever the graph changes, and tell so; ours need not."""
    kept: list[dict[str, Any]] = []
    for event in events:
        of_it = [each for each in kept if _state(each)[0] == _state(event)[0] is not None]
        if of_it and _state(event)[1] == "running" and _state(of_it[-1])[1] == "paused":
            kept.remove(of_it[-1])
        else:
            kept.append(event)
    return kept


def _state(event: dict[str, Any]) -> tuple[str | None, str | None]:
    """A job and its state, of events about that."""
    data = event["data"]
    return (data["id"], data["status"]) if event["event"] == "JOB_STATUS_CHANGE" else (None, None)


def normal_event(event: dict[str, Any]) -> str:
    """An event without its time, and without how much there was to do."""
    data = dict(event["data"])
    for member in ("len", "offset", "speed"):
        data.pop(member, None)
    return f"{event['event']} {json.dumps(data, sort_keys=True)}"


def normal(name: str, answer: dict[str, Any]) -> Any:
    """An answer without what may differ: made-up names, times, the order of sets."""
    if error := answer.get("error"):
        return re.sub(r"#block\d+", "#block", f"{error['class']}: {error['desc']}")
    result = answer["return"]
    if name == "query-jobs":
        result = [normal_job(job) for job in result]
    if name == "query-named-block-nodes":
        result = [normal_node(node) for node in result]
    text = re.sub(r"#block\d+", "#block", json.dumps(result))
    value = json.loads(text)
    return (
        sorted(value, key=lambda each: json.dumps(each, sort_keys=True))
        if isinstance(value, list)
        else value
    )


def normal_job(job: dict[str, Any]) -> dict[str, Any]:
    """A job without how far it is, unless it is there."""
    current, total = job.pop("current-progress"), job.pop("total-progress")
    return {**job, "done": current == total}


def normal_node(node: dict[str, Any]) -> dict[str, Any]:
    """A node without what its file system makes of it, and without a name that has its options."""
    if node["drv"] == "file":
        del node["image"]["virtual-size"]  # how a format above it gives out space is its affair
    for image in (node, *_images(node["image"])):
        image.pop("actual-size", None)
        for member in ("file", "filename", "full-backing-filename"):
            if str(image.get(member)).startswith(("json:", "null-co:")):
                image[member] = "(options)"
    for bitmap in node.get("dirty-bitmaps", ()):
        bitmap.pop("busy")
    node.get("dirty-bitmaps", []).sort(key=lambda bitmap: bitmap["name"])
    return dict(sorted(node.items()))


def _images(image: dict[str, Any]) -> list[dict[str, Any]]:
    below = image.get("backing-image")
    return [image, *(_images(below) if below else [])]


ALL = {**SCRIPTS, **JOB_SCRIPTS, **GRAPH_SCRIPTS, **DETAIL_SCRIPTS}
EVENTS: Step = ("(events)", {})


@pytest.mark.parametrize("name", ALL)
def test_the_answers_agree(name: str, tmp_path: Path) -> None:
    script = ALL[name]
    STARTED.add(name)
    ours = answers(tmp_path / "ours", OURS, script)
    theirs = answers(tmp_path / "theirs", QEMUS, script)
    found = {}
    for number, (step, one, other) in enumerate(zip([*script, EVENTS], ours, theirs, strict=True)):
        if one != other and not explained(name, number, step, one, other):
            found[f"{number}: {json.dumps(step)}"] = (one, other)
    assert not found, "\n".join(
        f"{step}\n   ours   {one}\n   QEMU's {other}" for step, (one, other) in found.items()
    )


USED: set[Difference] = set()
STARTED: set[str] = set()


def explained(name: str, number: int, step: Step, ours: Any, theirs: Any) -> bool:
    """Whether the table of differences has this one."""
    for difference in DIFFERENCES:
        if difference.covers(step[0], str(ours), str(theirs)):
            USED.add(difference)
            return True
    return False


def test_every_difference_is_still_there(tmp_path: Path) -> None:
    for number, name in enumerate(set(ALL) - STARTED):  # those that another process has run
        folder = tmp_path / str(number)
        folder.mkdir()
        test_the_answers_agree(name, folder)
    stale = [each.reason for each in DIFFERENCES if each not in USED]
    assert not stale
