# SPDX-License-Identifier: Apache-2.0
"""Just enough of a QMP client to run one job in a daemon, this package's or QEMU's."""

from __future__ import annotations

import json
import os
import socket

from blocklayer.base.errors import BlocklayerError, Cancelled
from blocklayer.base.progress import CancelToken, Progress, ProgressCallback

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, Self

LOOK_SECONDS = 0.2
LINE_MAX = 16 * 1024 * 1024


class QmpError(BlocklayerError, eq=False):
    """The daemon refuses, or cannot be talked to."""


class QmpClient:
    """A connection to a monitor on a unix socket."""

    def __init__(self, path: str) -> None:
        self._events: list[dict[str, Any]] = []
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(path)
            if "QMP" not in self._receive():
                raise QmpError(f"'{path}' is no QMP monitor")
            self.call("qmp_capabilities")
        except OSError as error:
            self._socket.close()
            raise QmpError(f"Could not connect to '{path}': {error.strerror or error}") from None
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, command: str, **arguments: Any) -> Any:
        """What a command returns. Raises `QmpError` with the daemon's words."""
        request = {"execute": command, "arguments": arguments}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while True:
                answer = self._receive()
                if "event" in answer:
                    self._events.append(answer)
                elif "error" in answer:
                    raise QmpError(str(answer["error"].get("desc", "unknown error")))
                elif "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise QmpError(f"The daemon does not answer: {error.strerror or error}") from None

    def event_of(self, job: str, *names: str, timeout: float) -> dict[str, Any] | None:
        """The next event of a job, if one of these comes in time."""
        while True:
            for event in list(self._events):
                self._events.remove(event)
                if event["event"] in names and event["data"].get("device") == job:
                    return event
            self._socket.settimeout(timeout)
            try:
                self._events.append(self._receive())
            except TimeoutError:
                return None
            except OSError as error:
                raise QmpError(f"The daemon has gone: {error.strerror or error}") from None
            finally:
                self._socket.settimeout(None)

    def _receive(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            data = self._socket.recv(65536)
            if not data:
                raise QmpError("The daemon has closed the connection")
            self._buffer += data
            if len(self._buffer) > LINE_MAX:
                raise QmpError("The daemon sends lines without an end")
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            raise QmpError("The daemon does not speak QMP") from None
        if not isinstance(message, dict):
            raise QmpError("The daemon does not speak QMP")
        return message


def mirror_nodes(
    client: QmpClient,
    source: str,
    target: str,
    options: dict[str, Any],
    *,
    move: bool,
    progress: ProgressCallback,
    cancel: CancelToken,
) -> int:
    """Mirror a node of the daemon, and end the job when it is ready; bytes that were moved."""
    job = f"blk-mirror-{os.getpid()}"
    client.call("blockdev-mirror", **{"job-id": job, "device": source, "target": target}, **options)
    ends = ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
    while True:
        event = client.event_of(job, "BLOCK_JOB_READY", *ends, timeout=LOOK_SECONDS)
        if event is not None:
            break
        if cancel.cancelled:
            client.call("block-job-cancel", device=job, force=True)
            client.event_of(job, *ends, timeout=60)
            raise Cancelled("mirror was cancelled")
        for each in client.call("query-block-jobs"):
            if each["device"] == job:
                progress(Progress("mirror", each["offset"], max(each["len"], 1)))
    if event["event"] == "BLOCK_JOB_READY":
        client.call("block-job-complete" if move else "block-job-cancel", device=job)
        event = None
        while event is None:
            event = client.event_of(job, *ends, timeout=LOOK_SECONDS)
    data = event["data"]
    if event["event"] != "BLOCK_JOB_COMPLETED" or "error" in data:
        raise QmpError(f"The mirror has failed: {data.get('error', 'it was cancelled')}")
    progress(Progress("mirror", max(data["offset"], 1), max(data["offset"], 1)))
    return int(data["offset"])
