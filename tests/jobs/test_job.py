# SPDX-License-Identifier: Apache-2.0
"""The life cycle of jobs: states, verbs, errors, transactions."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from blocklayer.base.errors import IoError
from blocklayer.jobs import states
from blocklayer.jobs.errors import JobNotFound
from blocklayer.jobs.job import Job
from blocklayer.jobs.manager import Jobs
from blocklayer.jobs.transaction import JobTransaction
from tests.jobs.scenes import wait_end
from tests.support.refusals import refusal

LEGAL = {
    "created": "running aborting null",
    "running": "paused ready waiting aborting",
    "paused": "running",
    "ready": "standby waiting aborting",
    "standby": "ready",
    "waiting": "pending aborting",
    "pending": "aborting concluded",
    "aborting": "aborting concluded",
    "concluded": "null",
}


class Work(Job):
    """Does as the test says: runs until it is let go."""

    type = "work"
    can_complete = True

    def __init__(self, jobs: Jobs, job_id: str = "j", **options: Any) -> None:
        self.go_on = threading.Event()
        self.at_end: Callable[[], None] = lambda: None
        self.log: list[str] = []
        self.gets_ready = False
        super().__init__(jobs, job_id, **options)

    def run(self) -> None:
        self.set_remaining(100)
        while not self.go_on.is_set():
            self.pause_point()
            self.sleep(0.005)
        self.advance(100)
        if self.gets_ready:
            self.become_ready()
            while not self.completing:
                self.pause_point()
                self.sleep(0.005, lambda: self.completing)
        self.at_end()

    def prepare(self) -> None:
        self.log.append("prepare")

    def commit(self) -> None:
        self.log.append("commit")

    def abort(self) -> None:
        self.log.append("abort")

    def clean(self) -> None:
        self.log.append("clean")


def made(**options: Any) -> tuple[Work, list[str]]:
    jobs = Jobs()
    heard: list[str] = []
    jobs.add_listener(lambda name, data: heard.append(data.get("status", name)))
    return Work(jobs, **options), heard


def test_the_table_of_transitions() -> None:
    for state, after in LEGAL.items():
        assert states.TRANSITIONS[state] == set(after.split()), state
    assert states.TRANSITIONS["null"] == set()


def test_the_table_of_verbs() -> None:
    alive = {"created", "running", "paused", "ready", "standby"}
    assert states.VERBS["cancel"] == alive | {"waiting", "pending"}
    assert states.VERBS["pause"] == states.VERBS["resume"] == states.VERBS["set-speed"] == alive
    assert states.VERBS["complete"] == {"ready", "standby"}
    assert states.VERBS["finalize"] == {"pending"}
    assert states.VERBS["dismiss"] == {"concluded"}


def test_success() -> None:
    job, heard = made()
    job.start()
    job.go_on.set()
    wait_end(job)
    life = ["created", "running", "waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"]
    assert heard == life
    assert job.log == ["prepare", "commit", "clean"]
    assert job.jobs.all() == []


def test_failure() -> None:
    job, heard = made(auto_dismiss=False)

    def fail() -> None:
        raise IoError("x", "file", errno.ENOSPC, "write")

    job.at_end = fail
    job.go_on.set()
    job.start()
    wait_end(job)
    assert heard[2:] == ["aborting", "BLOCK_JOB_COMPLETED", "concluded"]
    assert job.log == ["abort", "clean"]
    assert job.info()["error"] == "No space left on device"
    job.dismiss()
    assert heard[-1] == "null"
    assert refusal(lambda: job.jobs.find("j")) == "Job not found"


def test_a_mistake_of_ours_is_no_success() -> None:
    job, _ = made()

    def fail() -> None:
        raise ZeroDivisionError("oops")

    job.at_end = fail
    job.go_on.set()
    job.start()
    wait_end(job)
    assert job.error == "internal error: ZeroDivisionError: oops"
    assert job.log == ["abort", "clean"]


def test_cancel() -> None:
    job, heard = made()
    job.start()
    job.cancel()
    wait_end(job)
    assert heard[1:] == ["running", "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]
    assert job.log == ["abort", "clean"]


def test_cancelled_before_it_ran() -> None:
    job, heard = made()
    job.cancel()
    wait_end(job)
    assert heard == ["created", "aborting", "concluded", "null"]
    assert job.log == ["abort", "clean"]


def test_pause_and_resume() -> None:
    job, heard = made()
    job.start()
    job.pause()
    assert job.wait_for_status("paused", timeout=5) == "paused"
    assert job.block_info()["paused"] is True
    assert job.block_info()["busy"] is False
    assert refusal(job.pause) == "Job is already paused"
    assert refusal(job.cancel) == "The block job for device 'j' is currently paused"
    job.resume()
    assert refusal(job.resume) == "Can't resume a job that was not paused"
    job.go_on.set()
    wait_end(job)
    assert heard[1:5] == ["running", "paused", "running", "waiting"]


def test_ready_and_standby() -> None:
    job, heard = made()
    job.gets_ready = True
    job.start()
    text = "Job 'j' in state 'running' cannot accept command verb 'complete'"
    assert refusal(job.complete) == text
    job.go_on.set()
    assert job.wait_for_status("ready", timeout=5) == "ready"
    job.pause()
    assert job.wait_for_status("standby", timeout=5) == "standby"
    job.complete()
    assert job.status == "standby"
    job.resume()
    wait_end(job)
    assert heard[2:6] == ["ready", "BLOCK_JOB_READY", "standby", "ready"]


def test_finalize_by_hand() -> None:
    job, heard = made(auto_finalize=False, auto_dismiss=False)
    job.start()
    job.go_on.set()
    assert job.wait_for_status("pending", timeout=5) == "pending"
    time.sleep(0.02)
    assert job.log == []
    assert heard[-1] == "BLOCK_JOB_PENDING"
    job.finalize()
    wait_end(job)
    assert job.log == ["prepare", "commit", "clean"]
    text = "Job 'j' in state 'concluded' cannot accept command verb 'cancel'"
    assert refusal(job.cancel) == text


def test_cancelled_while_pending() -> None:
    job, _ = made(auto_finalize=False)
    job.start()
    job.go_on.set()
    job.wait_for_status("pending", timeout=5)
    job.cancel(force=True)
    wait_end(job)
    assert job.log == ["abort", "clean"]


@pytest.mark.parametrize("verb", ["dismiss", "finalize", "complete"])
def test_verbs_at_the_wrong_time(verb: str) -> None:
    job, _ = made()
    job.start()
    text = f"Job 'j' in state 'running' cannot accept command verb '{verb}'"
    assert refusal(getattr(job, verb)) == text
    job.cancel()


def test_names() -> None:
    jobs = Jobs()
    for wrong in ("1 j", "", "1j", "a b", "ü"):
        assert refusal(partial(Work, jobs, wrong)) == f"Invalid job ID '{wrong}'"
    job = Work(jobs, "j")
    assert refusal(lambda: Work(jobs, "j")) == "Job ID 'j' already in use"
    with pytest.raises(JobNotFound) as caught:
        jobs.find_block_job("x")
    assert caught.value.qmp_class == "DeviceNotActive"
    assert str(caught.value) == "Block job 'x' not found"
    job.cancel()


def test_a_negative_speed() -> None:
    job, _ = made()
    text = "Parameter 'speed' expects a non-negative value"
    assert refusal(lambda: job.set_speed(-1)) == text
    assert refusal(lambda: Work(Jobs(), speed=-1)) == text
    job.cancel()


def test_grouped_jobs_end_together() -> None:
    jobs, group = Jobs(), JobTransaction()
    one = Work(jobs, "one", transaction=group)
    other = Work(jobs, "other", transaction=group)
    for job in (one, other):
        job.start()
    one.go_on.set()
    assert one.wait_for_status("waiting", timeout=5) == "waiting"
    time.sleep(0.02)
    assert one.log == []
    other.go_on.set()
    wait_end(one)
    wait_end(other)
    assert one.log == other.log == ["prepare", "commit", "clean"]


def test_who_is_not_waited_for_is_not_told_of_as_pending() -> None:
    """Of a group, only jobs without auto-finalize: one word lets all of them end."""
    jobs, group = Jobs(), JobTransaction()
    told: list[object] = []
    jobs.add_listener(
        lambda name, data: told.append(data["id"]) if name == "BLOCK_JOB_PENDING" else None
    )
    one = Work(jobs, "one", transaction=group, auto_finalize=False)
    other = Work(jobs, "other", transaction=group)
    for job in (one, other):
        job.start()
        job.go_on.set()
    for job in (one, other):
        assert job.wait_for_status("pending", timeout=5) == "pending"
    other.finalize()
    wait_end(one)
    wait_end(other)
    assert told == ["one"]


def test_grouped_jobs_fail_together() -> None:
    jobs, group = Jobs(), JobTransaction()
    one = Work(jobs, "one", transaction=group)
    other = Work(jobs, "other", transaction=group)
    third = Work(jobs, "third", transaction=group)
    one.start()
    other.start()
    one.go_on.set()
    one.wait_for_status("waiting", timeout=5)
    other.cancel()
    for job in (one, other, third):
        wait_end(job)
        assert job.log == ["abort", "clean"], job


def test_policies() -> None:
    job, _ = made()
    heard: list[dict[str, object]] = []
    job.jobs.add_listener(lambda name, data: heard.append(data))
    full = IoError("x", "f", errno.ENOSPC, "write")
    other = IoError("x", "f", errno.EIO, "read")
    job.start()
    assert job.on_error("report", "write", full) == "report"
    assert job.on_error("ignore", "write", full) == "ignore"
    assert job.on_error("enospc", "read", other) == "report"
    assert job.on_error("auto", "read", other) == "report"
    assert not job.paused
    assert job.on_error("enospc", "write", full) == "stop"
    assert job.paused
    assert job.block_info()["io-status"] == "nospace"
    job.resume()
    assert job.block_info()["io-status"] == "ok"
    assert job.on_error("stop", "read", other) == "stop"
    assert job.block_info()["io-status"] == "failed"
    assert {"device": "j", "operation": "write", "action": "stop"} in heard
    job.cancel(force=True)
    wait_end(job)
