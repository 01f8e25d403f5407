"""The commands under `gradserve jobs`."""

import json
from typing import Annotated

import typer

from app.cli_shared import URL, ApiKey, AsCsv, Limit, Url, connect, show, show_list, show_rows

jobs = typer.Typer(help="Training runs: list, show, follow, stop, forget.", no_args_is_help=True)


@jobs.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="queued, running, paused, succeeded, failed, cancelled, …")] = None,
    model: Annotated[str | None, typer.Option(help="Only runs of this model.")] = None,
    limit: Limit = 20,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Jobs, one a line."""
    columns = ["id", "state", "model", "version", "stop_reason", "created_at", "finished_at"]
    with connect(url, api_key) as client:
        show_list(client.jobs(state, model), columns, limit)


@jobs.command("show")
def show_job(job_id: str, url: Url = URL, api_key: ApiKey = None) -> None:
    """All of a job, as JSON."""
    with connect(url, api_key) as client:
        show(client.job(job_id))


@jobs.command("events")
def follow_job(job_id: str, url: Url = URL, api_key: ApiKey = None) -> None:
    """A job's events up to its end, live, one JSON object a line."""
    with connect(url, api_key) as client:
        for event in client.events(job_id):
            typer.echo(json.dumps(event._asdict()))


@jobs.command("cancel")
def cancel_job(job_id: str, url: Url = URL, api_key: ApiKey = None) -> None:
    """End a job without a model."""
    with connect(url, api_key) as client:
        typer.echo(f"Job {job_id} is {client.cancel(job_id)['state']}")


@jobs.command("pause")
def pause_job(job_id: str, url: Url = URL, api_key: ApiKey = None) -> None:
    """Stop a job so that it can go on later."""
    with connect(url, api_key) as client:
        typer.echo(f"Job {job_id} is {client.pause(job_id)['state']}")


@jobs.command("resume")
def resume_job(job_id: str, url: Url = URL, api_key: ApiKey = None) -> None:
    """Go on with a paused job."""
    with connect(url, api_key) as client:
        typer.echo(f"Job {job_id} is {client.resume(job_id)['state']}")


@jobs.command("history")
def show_history(job_id: str, as_csv: AsCsv = False, url: Url = URL, api_key: ApiKey = None) -> None:
    """Metrics of each epoch, one a line."""
    with connect(url, api_key) as client:
        show_rows(client.history(job_id), as_csv)


@jobs.command("delete")
def delete_job(job_id: str, url: Url = URL, api_key: ApiKey = None) -> None:
    """Forget a job that has ended, with its events; the version that it published stays."""
    with connect(url, api_key) as client:
        client.delete_job(job_id)
