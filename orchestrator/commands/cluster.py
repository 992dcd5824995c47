"""The verbs for sweeps on a Ray cluster: submit, watch, stop, bring home."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.options import INTERRUPTED, ConfigArgument, SetOption

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from orchestrator.remote.cluster import Cluster

verbs = typer.Typer()

JobArgument = Annotated[str, typer.Argument(metavar="ID", help="A job's id, as `rankfront jobs` lists it.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="http://HOST:8265 of Ray's dashboard, or HOST:6379 of Ray itself "
        "[default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, the cluster on this machine].",
    ),
]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")]


@verbs.command()
def submit(
    config: ConfigArgument,
    address: AddressOption = None,
    working_dir: Annotated[
        Path, typer.Option(metavar="FOLDER", help="What the job needs: CONFIG, search spaces of your own.")
    ] = Path(),
    output: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Output directory on the cluster, on storage that all nodes share, or a URL (file://, s3://, gs://) "
            "that all nodes reach [default: ~/rankfront/<name>].",
        ),
    ] = None,
    set_: SetOption = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Files or folders that are not sent; may be repeated.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for the job's end.")] = False,
) -> None:
    """Run a sweep on a Ray cluster as a job; waits for it, shows its log, and ends with its exit code.

    The same command again goes on with a sweep that was stopped.
    """
    from orchestrator.remote.own_code import add_own_code
    from orchestrator.remote.package import shown_size
    from orchestrator.remote.submission import not_sent, prepare

    submission = prepare(config, set_ or [], working_dir, output, exclude or [])
    package = submission.package
    theirs = f"{len(package.files)} files, {shown_size(package.num_bytes)}"
    num_own = add_own_code(package)
    cluster = _connected(address)
    print(
        f"Sends to {cluster.address}: {theirs}, of {package.root}, and rankfront ({num_own} files); in all "
        f"{shown_size(package.num_bytes)}"
    )
    for text in (*package.reasons(), *(f"a secret: {name}; the job has the cluster's own" for name in not_sent())):
        print(f"Not sent, {text}")
    cluster.submit(submission.job, submission.entrypoint, package.files, submission.env_vars, submission.metadata)
    print(f"Job {submission.job}\nOutput {submission.metadata['output']}, on the cluster")
    for verb in ("logs -f", "status", "stop", "fetch"):
        print(f"  rankfront {verb} {submission.job}{_address_part(address)}", flush=True)
    if not no_wait:
        raise typer.Exit(_follow(cluster, submission.job, address))


@verbs.command()
def jobs(address: AddressOption = None) -> None:
    """List the jobs of a Ray cluster."""
    from orchestrator.remote.show import listed

    print(listed(_connected(address).jobs()))


@verbs.command()
def status(job: JobArgument, address: AddressOption = None) -> None:
    """Show how a job is doing."""
    from orchestrator.remote.show import described

    print(described(_connected(address).info(job)))


@verbs.command()
def logs(job: JobArgument, follow: FollowOption = False, address: AddressOption = None) -> None:
    """Print what a job has printed; with -f until it ends, and with its exit code."""
    cluster = _connected(address)
    cluster.info(job)
    if follow:
        raise typer.Exit(_follow(cluster, job, address))
    print(cluster.logs(job), end="")


@verbs.command()
def stop(job: JobArgument, address: AddressOption = None) -> None:
    """Stop a job; its sweep writes down what it has found, and the same `rankfront submit` goes on with it."""
    from orchestrator.remote.submission import STOP_WAIT_S

    cluster = _connected(address)
    if cluster.info(job).status.is_terminal():
        print(f"{job} has ended before: {cluster.info(job).status.value}")
        return
    cluster.stop(job)
    print(f"{job} {cluster.ended(job, STOP_WAIT_S + 30).status.value}")


@verbs.command()
def fetch(
    job: Annotated[str, typer.Argument(metavar="ID|URL", help="A job's id, or the URL where a sweep is kept.")],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder on this machine [default: runs/<name>].")
    ] = None,
    address: AddressOption = None,
) -> None:
    """Bring an output directory to this machine, finished or not; repeated, what is missing or has changed."""
    from orchestrator.remote.fetch import fetch as bring_home
    from orchestrator.remote.fetch import fetch_url
    from orchestrator.stored.location import is_url

    def tell(text: str) -> None:
        print(text, flush=True)

    found = fetch_url(job, output, tell) if is_url(job) else bring_home(_connected(address), job, output, tell)
    print(
        f"{found.num_new} new, {found.num_replaced} replaced, {found.num_kept} were here\n  rankfront front {found.target}"
    )


def _connected(address: str | None) -> "Cluster":
    from orchestrator.remote.address import sent_in_clear
    from orchestrator.remote.cluster import Cluster

    cluster = Cluster(address)
    if sent_in_clear(cluster.address):
        print(
            f"Warning: the token travels unencrypted to {cluster.address}; use https, or a tunnel such as "
            "ssh -L 8265:127.0.0.1:8265 HOST",
            file=sys.stderr,
        )
    return cluster


def _follow(cluster: "Cluster", job: str, address: str | None) -> int:
    from orchestrator.remote.follow import follow

    try:
        info = follow(cluster, job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        part = _address_part(address)
        print(f"\nThe job goes on. rankfront logs -f {job}{part}; rankfront stop {job}{part}", file=sys.stderr)
        return INTERRUPTED
    never_started = info.driver_exit_code is None and info.status == "FAILED"
    print(f"{job} {info.status.value}{f': {info.message}' if never_started else ''}")
    return exit_code(info)


def exit_code(info: "JobDetails") -> int:
    """The job's exit code as a shell would give it: 130 where it was stopped, 128 + n where signal n ended it."""
    if info.status == "STOPPED":
        return INTERRUPTED
    code = info.driver_exit_code
    if code is None:  # it never started
        return 0 if info.status == "SUCCEEDED" else 1
    return 128 - code if code < 0 else code


def _address_part(address: str | None) -> str:
    return "" if address is None else f" --address {shlex.quote(address)}"
