"""What the command line does with a file of rows: train on it, predict it, evaluate a model on it."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO
from uuid import uuid4

import typer

from app.cli_shared import TABLE, URL, ApiKey, NoHeader, Url, connect, name_of, show, show_list

if TYPE_CHECKING:
    from polars import DataFrame

    from app.client import Client


# ---- train


def train(
    file: Annotated[Path, TABLE],
    target: Annotated[list[str], typer.Option(help="Column to predict; repeat it for several.")],
    model: Annotated[str | None, typer.Option(help="Name of the model (default: the file's)")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Column to leave out; repeat it for several.")] = None,
    task: Annotated[str | None, typer.Option(help="regression, binary, multiclass or multilabel")] = None,
    hidden: Annotated[str | None, typer.Option(help="Widths of the hidden layers: 64,64")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam, adamw, …")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Step size.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Most passes over the rows.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a gain after which to stop.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is drawn at random.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY.PATH=JSON", help="Any field of POST /train.")
    ] = None,
    no_header: NoHeader = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the job is queued.")] = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Upload a table and train a model on it, with a live progress bar."""
    name = name_of(file)
    data = {"dataset": name, "target": target[0] if len(target) == 1 else target}
    body: dict[str, Any] = {"model": model or name, "data": data}
    if learning_rate is not None:
        optimizer = optimizer or "adamw"
    options = {
        "data.ignored_columns": ignore or None,
        "task": task,
        "network.hidden_features": None if hidden is None else _widths(hidden),
        "optimizer.type": optimizer,
        "optimizer.learning_rate": learning_rate,
        "descent.batch_size": batch_size,
        "stop.max_epochs": epochs,
        "stop.patience": patience,
        "seed": seed,
    }
    given = [(path, value) for path, value in options.items() if value is not None]
    for path, value in [*given, *map(_assignment, set_ or ())]:
        _put(body, path, value)
    with connect(url, api_key) as client:
        stored = client.upload_dataset(name, file, has_header=not no_header)
        if body["data"].get("dataset") == name:  # whatever another upload of that name stores meanwhile
            body["data"].setdefault("digest", stored["digest"])
        job = client.submit(body)
        for warning in job["warnings"]:
            typer.echo(f"warning: {warning}", err=True)
        if detach:
            typer.echo(f"Job {job['id']} is {job['state']}; follow it with: gradserve jobs events {job['id']}")
        else:
            _follow(client, job)


def _widths(text: str) -> list[int]:
    try:
        return [int(width) for width in text.split(",") if width]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not widths, as in 64,64", param_hint="--hidden") from error


def _assignment(text: str) -> tuple[str, Any]:
    path, sign, value = text.partition("=")
    if not (path and sign):
        raise typer.BadParameter(f"{text!r} is not KEY.PATH=JSON, as in stop.max_epochs=20", param_hint="--set")
    try:
        return path, json.loads(value)
    except json.JSONDecodeError:
        return path, value  # a word without its quotes


def _put(body: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        body = body.setdefault(parent, {})
        if not isinstance(body, dict):
            raise typer.BadParameter(f"{path}: {parent} is no object", param_hint="--set")
    body[last] = value


def _follow(client: "Client", job: dict[str, Any]) -> None:
    from app.client.errors import ClientError, JobFailed

    try:
        _show_to_the_end(client, job)
    except JobFailed:
        raise
    except ClientError:
        typer.echo(_runs_on(job), err=True)
        raise


def _show_to_the_end(client: "Client", job: dict[str, Any]) -> None:
    try:  # Ctrl-C may come while things are imported, too
        from rich import print as rich_print

        from app.client.errors import JobFailed
        from app.terminal import TrainingProgress, loss_curve, metrics_table

        with TrainingProgress(job["model"]) as progress:
            for event in client.events(job["id"]):
                progress(event)
    except KeyboardInterrupt:
        _leave(client, job)
    job = client.job(job["id"])
    if job["state"] != "succeeded":
        raise JobFailed(job)
    history = client.history(job["id"])
    rich_print(loss_curve(history), metrics_table(job["metrics"]), sep="\n")
    epoch = job["metrics"].get("best_epoch", len(history))
    kept = f"; kept are the weights of epoch {epoch}, the best" if epoch < len(history) else ""
    typer.echo(
        f"Stopped by {job['stop_reason']}{kept}. "
        f"Model: {client.base_url}/models/{job['model']}/versions/{job['version']}"
    )


def _leave(client: "Client", job: dict[str, Any]) -> None:
    """After Ctrl-C: cancel, or leave the job to the service; so does a second Ctrl-C."""
    try:
        is_unwanted = sys.stdin.isatty() and typer.confirm("\nCancel the job? (No leaves it running)")
    except typer.Abort:
        is_unwanted = False
    if is_unwanted:
        client.cancel(job["id"])
        typer.echo(f"Job {job['id']} is being cancelled.")
    else:
        typer.echo(_runs_on(job))
    raise typer.Exit(130)


def _runs_on(job: dict[str, Any]) -> str:
    return f"Job {job['id']} runs on; follow it with: gradserve jobs events {job['id']}"


# ---- predict

NO_CSV = {".arrow", ".feather", ".gz", ".ipc", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv", ".xlsx"}


def predict(
    model: str,
    file: Annotated[Path | None, TABLE] = None,
    row: Annotated[str | None, typer.Option(help='One row as JSON instead: [1, 2] or {"column": 1}')] = None,
    version: Annotated[str | None, typer.Option(help="Version or alias (default: the newest)")] = None,
    output: Annotated[Path | None, typer.Option(help="CSV file to write instead of standard output.")] = None,
    no_header: NoHeader = False,
    routing_key: Annotated[str | None, typer.Option(help="The same key gets the same version of a canary.")] = None,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Predict the rows of a file, which come back as CSV with predictions added, or a single row."""
    if (file is None) == (row is None):
        raise typer.BadParameter("give either a FILE or --row")
    if output is not None and output.suffix.lower() in NO_CSV:
        raise typer.BadParameter(f"{output.name} would be CSV; name it .csv", param_hint="--output")
    with connect(url, api_key) as client:
        if row is not None:
            show(client.predict(model, [_json_row(row)], version, routing_key=routing_key))
        elif file is not None:
            from app.predict_file import predict_file

            if sys.platform != "win32":  # polars, which that imports, would have Ctrl-C wait for input
                signal.siginterrupt(signal.SIGINT, True)
            parts = predict_file(
                client, model, file, version=version, routing_key=routing_key, has_header=not no_header
            )
            _write(parts, output)


def _json_row(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--row") from error


def _write(parts: "Iterator[DataFrame]", output: Path | None) -> None:
    """What is in the file stays there until all is written that takes its place; it may be the one that is read."""
    from app.client.files import whole_file

    if output is None:
        _write_rows(parts, sys.stdout.buffer)
        return
    with whole_file(output) as target:
        num_rows = _write_rows(parts, target)
    typer.echo(f"{num_rows} rows written to {output}", err=not output.is_file())


def _write_rows(parts: "Iterator[DataFrame]", target: BinaryIO) -> int:
    num_rows = 0
    for part in parts:
        target.write(part.write_csv(include_header=not num_rows).encode())
        num_rows += part.height
    return num_rows


# ---- evaluate


def evaluate(
    model: str,
    file: Annotated[Path, TABLE],
    target: Annotated[list[str] | None, typer.Option(help="Column of the answers (default: the model's)")] = None,
    version: Annotated[str | None, typer.Option(help="Version or alias (default: the newest)")] = None,
    no_header: NoHeader = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with all digits.")] = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Loss and metrics of a model on a table whose answers are known. The service keeps none of it.

    A key needs the scopes read, predict, and train, for the upload.
    """
    with connect(url, api_key) as client:
        found = client.model(model)["newest"] if version is None else client.model(model, version)
        targets = target or [column["name"] for column in found["signature"]["targets"]]
        dataset = f"evaluate-{uuid4().hex}"
        client.upload_dataset(dataset, file, has_header=not no_header)
        try:
            answer = client.evaluate(model, {"dataset": dataset, "target": targets}, found["version"])
        finally:
            client.delete_dataset(dataset)
    if as_json:
        show(answer)
        return
    figures = {"num_rows": answer["num_rows"], "loss": answer["loss"], **answer["metrics"]}
    show_list(({"metric": name, "value": value} for name, value in figures.items()), ["metric", "value"], len(figures))
