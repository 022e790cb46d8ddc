# SPDX-License-Identifier: Apache-2.0
"""Commands about jobs: those that begin them, and those that steer them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from blocklayer.qmp.commands import new_images, nodes
from blocklayer.qmp.schema import jobs as schema
from blocklayer.qmp.types import DeviceNotFound, Family, Members, Nothing, QmpError, Undo

if TYPE_CHECKING:
    from blocklayer.core.graph import Graph
    from blocklayer.jobs.job import Job
    from blocklayer.jobs.transaction import JobTransaction
    from blocklayer.qmp.context import Context

FAMILY = Family("Jobs")


def _given(arguments: Members) -> dict[str, Any]:
    """The members that are there, by the names that functions have for them."""
    return {
        name: value
        for name, value in msgspec.structs.asdict(arguments).items()
        if value is not None
    }


def _require_root(graph: Graph, name: str) -> None:
    """Raise `QmpError` if another node lies over a node, so that moving away from it is no move."""
    if any(edge.role != "target" for edge in graph.parents(graph.find(name))):
        raise QmpError("Need a root block node")


# --- jobs that copy -----------------------------------------------------------------------------


@FAMILY.command("blockdev-mirror", schema.BlockdevMirror)
def blockdev_mirror(context: Context, arguments: schema.BlockdevMirror) -> None:
    """Copy a disk to a node and keep it up to date, until block-job-complete switches to it."""
    from blocklayer.jobs import mirror

    _require_root(context.graph, arguments.device)
    mirror.start(context.graph, context.jobs, **_given(arguments))


@FAMILY.command("drive-mirror", schema.DriveMirror)
def drive_mirror(context: Context, arguments: schema.DriveMirror) -> None:
    """blockdev-mirror to an image that is named by its file, and made if it is not there."""
    from blocklayer.jobs import mirror

    graph, jobs = context.graph, context.jobs
    _require_root(graph, arguments.device)
    source = graph.find(arguments.device)
    job_id = jobs.id_for(arguments.device, arguments.job_id)
    if arguments.node_name is not None:
        graph.check_new_name(arguments.node_name)
    options = _given(arguments)
    for name in ("target", "format", "mode", "node_name"):
        options.pop(name, None)
    wanted = new_images.Wanted(
        arguments.target,
        arguments.format or source.driver,
        made=arguments.mode != "existing",
        name=arguments.node_name,
        discard="unmap" if arguments.unmap is not False else "ignore",
    )
    below = new_images.below(source, arguments.sync) if wanted.format != "raw" else None
    target, undo = new_images.open_image(graph, wanted, source.size, below)
    try:
        mirror.start(graph, jobs, **{**options, "job_id": job_id, "target": graph.name_of(target)})
    except BaseException:
        undo()
        raise
    # The job holds the target as long as it needs it, and the daemon has no other use for it.
    graph.disown(target)


def begin_backup(
    context: Context, arguments: schema.BlockdevBackup, transaction: JobTransaction | None
) -> Job:
    """blockdev-backup; with a transaction it has begun, and who has the transaction lets it go."""
    from blocklayer.jobs import backup

    options = _given(arguments)
    if arguments.x_perf is not None:
        options["x_perf"] = msgspec.to_builtins(arguments.x_perf)
    job = backup.start(context.graph, context.jobs, transaction=transaction, **options)
    if transaction is not None:
        job.begin()
    return job


@FAMILY.command("blockdev-backup", schema.BlockdevBackup)
def blockdev_backup(context: Context, arguments: schema.BlockdevBackup) -> None:
    """Copy a disk as it is at this moment, while it goes on being used."""
    begin_backup(context, arguments, None)


def begin_drive_backup(
    context: Context, arguments: schema.DriveBackup, transaction: JobTransaction | None
) -> tuple[Job, Undo]:
    """drive-backup; the job, and what removes the image that was made for it."""
    graph = context.graph
    source = graph.find(arguments.device)
    context.jobs.id_for(arguments.device, arguments.job_id)  # before an image is made
    options = _given(arguments)
    for name in ("format", "mode"):
        options.pop(name, None)
    below = new_images.below(source, arguments.sync)
    if arguments.sync == "top" and below is None:
        options["sync"] = "full"
    wanted = new_images.Wanted(
        arguments.target,
        arguments.format or source.driver,
        made=arguments.mode != "existing",
        alone=arguments.sync == "none",
    )
    target, undo = new_images.open_image(graph, wanted, source.size, below)
    try:
        if arguments.sync == "none":
            new_images.put_over(graph, target, source)
        plain = schema.BlockdevBackup(**{**options, "target": graph.name_of(target)})
        job = begin_backup(context, plain, transaction)
    except BaseException:
        undo()
        raise
    context.made.append(target)
    return job, partial(new_images.forget_file, wanted)


@FAMILY.command("drive-backup", schema.DriveBackup, features=("deprecated",))
def drive_backup(context: Context, arguments: schema.DriveBackup) -> None:
    """blockdev-backup to an image that is named by its file, and made if it is not there."""
    begin_drive_backup(context, arguments, None)
    nodes.disown_made(context)


@FAMILY.command("block-commit", schema.BlockCommit)
def block_commit(context: Context, arguments: schema.BlockCommit) -> None:
    """Write what layers of a chain hold into a layer below them, and take them out."""
    from blocklayer.jobs import commit

    if arguments.device not in context.graph:
        raise DeviceNotFound(f"Device '{arguments.device}' not found")
    _require_root(context.graph, arguments.device)
    commit.start(context.graph, context.jobs, **_given(arguments))


@FAMILY.command("block-stream", schema.BlockStream)
def block_stream(context: Context, arguments: schema.BlockStream) -> None:
    """Copy into an image what layers below it hold, and take them out."""
    from blocklayer.jobs import stream

    stream.start(context.graph, context.jobs, **_given(arguments))


# --- block-job-…: by the name that block jobs have in events ------------------------------------


@FAMILY.command("block-job-set-speed", schema.SetSpeed)
def block_job_set_speed(context: Context, arguments: schema.SetSpeed) -> None:
    """Limit a job's speed."""
    context.jobs.find_block_job(arguments.device).set_speed(arguments.speed)


@FAMILY.command("block-job-cancel", schema.BlockJobCancel)
def block_job_cancel(context: Context, arguments: schema.BlockJobCancel) -> None:
    """End a job. A mirror that is ready leaves its target as a copy, unless forced."""
    context.jobs.find_block_job(arguments.device).cancel(force=bool(arguments.force))


@FAMILY.command("block-job-pause", schema.OnBlockJob)
def block_job_pause(context: Context, arguments: schema.OnBlockJob) -> None:
    """Let a job rest."""
    context.jobs.find_block_job(arguments.device).pause()


@FAMILY.command("block-job-resume", schema.OnBlockJob)
def block_job_resume(context: Context, arguments: schema.OnBlockJob) -> None:
    """Let a job go on."""
    context.jobs.find_block_job(arguments.device).resume()


@FAMILY.command("block-job-complete", schema.OnBlockJob)
def block_job_complete(context: Context, arguments: schema.OnBlockJob) -> None:
    """Let a job that is ready do what it is there for: a mirror switches to its target."""
    context.jobs.find_block_job(arguments.device).complete()


@FAMILY.command("block-job-finalize", schema.OnJob)
def block_job_finalize(context: Context, arguments: schema.OnJob) -> None:
    """Let a job of which auto-finalize is off end."""
    context.jobs.find_block_job(arguments.id).finalize()


@FAMILY.command("block-job-dismiss", schema.OnJob)
def block_job_dismiss(context: Context, arguments: schema.OnJob) -> None:
    """Forget a job that has ended, and of which auto-dismiss is off."""
    context.jobs.find_block_job(arguments.id).dismiss()


@FAMILY.command("block-job-change", schema.ChangeMirror)
def block_job_change(context: Context, arguments: schema.ChangeMirror) -> None:
    """Change a job while it runs."""
    from blocklayer.jobs.mirror import MirrorJob

    job = context.jobs.find_block_job(arguments.id)
    if not isinstance(job, MirrorJob) or job.type != "mirror":  # an active commit is one as well
        raise QmpError(f"Job '{job.id}' is '{job.type}' job, not 'mirror'")
    job.change(copy_mode=arguments.copy_mode)


@FAMILY.command("query-block-jobs", Nothing, list[schema.BlockJobInfo])
def query_block_jobs(context: Context, arguments: Nothing) -> Any:
    """List the jobs on nodes, the newest first."""
    jobs = reversed(context.jobs.all())
    return [job.block_info() for job in jobs if job.is_block_job]


# --- job-…: all of them -------------------------------------------------------------------------


@FAMILY.command("job-pause", schema.OnJob)
def job_pause(context: Context, arguments: schema.OnJob) -> None:
    """Let a job rest."""
    context.jobs.find(arguments.id).pause()


@FAMILY.command("job-resume", schema.OnJob)
def job_resume(context: Context, arguments: schema.OnJob) -> None:
    """Let a job go on."""
    context.jobs.find(arguments.id).resume()


@FAMILY.command("job-cancel", schema.OnJob)
def job_cancel(context: Context, arguments: schema.OnJob) -> None:
    """End a job without a result."""
    context.jobs.find(arguments.id).cancel(force=True)


@FAMILY.command("job-complete", schema.OnJob)
def job_complete(context: Context, arguments: schema.OnJob) -> None:
    """Let a job that is ready do what it is there for."""
    context.jobs.find(arguments.id).complete()


@FAMILY.command("job-finalize", schema.OnJob)
def job_finalize(context: Context, arguments: schema.OnJob) -> None:
    """Let a job of which auto-finalize is off end."""
    context.jobs.find(arguments.id).finalize()


@FAMILY.command("job-dismiss", schema.OnJob)
def job_dismiss(context: Context, arguments: schema.OnJob) -> None:
    """Forget a job that has ended, and of which auto-dismiss is off."""
    context.jobs.find(arguments.id).dismiss()


@FAMILY.command("query-jobs", Nothing, list[schema.JobInfo])
def query_jobs(context: Context, arguments: Nothing) -> Any:
    """List the jobs, the newest first."""
    return [job.info() for job in reversed(context.jobs.all())]
