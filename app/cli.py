"""The `gradserve` command: starts the service, and talks to one that runs. Imports what it needs when it needs it."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli_keys import keys, load_settings
from app.cli_resources import URL, ApiKey, Url, connect, datasets, jobs, models, name_of, show

if TYPE_CHECKING:
    from polars import DataFrame

    from app.client import Client
    from app.settings import Settings

app = typer.Typer(
    help="POST a table, get a trained neural net; POST rows, get predictions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(jobs, name="jobs")
app.add_typer(models, name="models")
app.add_typer(datasets, name="datasets")
app.add_typer(keys, name="keys")

HANG_SECONDS = 30  # without an answer, after which an API process is replaced; importing torch blocks it for some
MAX_OPEN_FILES = 2**16
HEALTH_SECONDS = 4.0  # to wait for an answer; less than what containers give
GRACE_SECONDS = 10  # for requests that are being answered when the service is asked to stop


def main(arguments: list[str] | None = None) -> None:
    """Entry point: what the service or the network says becomes a line or two and exit status 1."""
    from app.errors import GradserveError

    try:
        app(arguments)
    except Exception as error:
        from app.client.errors import ClientError

        if not isinstance(error, ClientError | GradserveError | OSError):
            raise
        typer.echo("\n".join(_explain(error)), err=True)
        sys.exit(1)


def _explain(error: Exception) -> Iterator[str]:
    from app.client.errors import ApiError, Unauthorized, Unreachable

    yield f"Error: {error}"
    if isinstance(error, ApiError):
        for fault in error.faults:
            yield f"  at {fault.pointer or '/'}" + (f": {fault.detail}" if fault.detail != error.detail else "")
    if isinstance(error, Unreachable):
        yield "Start a service with `gradserve serve`, or name another with --url or GRADSERVE_URL."
    if isinstance(error, Unauthorized):
        yield "Give a key with --api-key or GRADSERVE_API_KEY."


# ---- serve


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on (default: GRADSERVE_HOST or 127.0.0.1)")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (default: GRADSERVE_PORT or 8000)")] = None,
    workers: Annotated[int, typer.Option(min=1, help="API processes.")] = 1,
) -> None:
    """Start the service. Settings are GRADSERVE_… environment variables: see docs/settings.md."""
    import uvicorn

    settings = load_settings()
    host, port = host or settings.host, settings.port if port is None else port
    if _is_taken(host, port):
        typer.echo(f"Error: port {port} of {host} is taken by another program; choose one with --port", err=True)
        raise typer.Exit(1)
    os.environ |= {"GRADSERVE_HOST": host, "GRADSERVE_PORT": str(port)}  # for the API processes
    if not _is_loopback(host) and not _has_keys(settings):
        os.environ["GRADSERVE_API_KEYS"] = _make_key()
    _check_tls(settings)
    _check_data(settings)
    if sys.stderr.isatty():
        scheme = "https" if settings.tls_certificate else "http"
        typer.echo(f"Gradserve is starting; try it at {scheme}://{host}:{port}/docs, stop it with Ctrl-C.", err=True)
    _allow_open_files()
    # Logging is the application's own, set up before anything is worth a line.
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "http": "app.api.connections:Connection",
        "ws": "none",
        "log_config": None,
        "timeout_graceful_shutdown": GRACE_SECONDS,
        "timeout_worker_healthcheck": HANG_SECONDS,
        "server_header": False,
        "ssl_certfile": settings.tls_certificate,
        "ssl_keyfile": settings.tls_key,
    }
    if workers > 1:
        from app.processes import run_processes

        run_processes(uvicorn.Config("app.main:app", workers=workers, **options))
    else:
        uvicorn.run("app.main:app", **options)


def _allow_open_files() -> None:
    """As many as this process may: each stream of events is one, and the usual 1024 are too few."""
    with suppress(ImportError, ValueError, OSError):  # not a Unix, or a system that has its own opinion
        import resource

        usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(most, MAX_OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(usual, wanted), most))


def _has_keys(settings: "Settings") -> bool:
    from app.storage.keys import KeyFile

    return bool(settings.api_keys.get_secret_value() or KeyFile(settings.key_file).read())


def _check_tls(settings: "Settings") -> None:
    """Say what is wrong with the files now, in a line; later the server would, in many."""
    if settings.tls_certificate is None:
        return
    import ssl

    certificate, key = settings.tls_certificate, settings.tls_key
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except OSError as error:  # those of ssl are such, too
        files = f"{certificate} and {key}" if key else str(certificate)
        typer.echo(f"Error: no TLS with {files}: {error}", err=True)
        raise typer.Exit(1) from error


def _check_data(settings: "Settings") -> None:
    """Bring the database up to date. What is wrong with it or with the keys is said now, in a line, as above."""
    from app.storage.database import Database
    from app.storage.keys import KeyFile
    from app.storage.migrations import migrate

    KeyFile(settings.key_file).read()
    database = Database(settings.database)
    migrate(database)
    database.close()


def _is_taken(host: str, port: int) -> bool:
    import errno
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _is_loopback(host: str) -> bool:
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _make_key() -> str:
    """A key with all scopes, as GRADSERVE_API_KEYS wants it; printed, since nobody else will know it."""
    import secrets

    key = secrets.token_urlsafe(24)
    typer.echo(
        f"This service can be reached from other machines, so it wants a key. For this run it is\n\n    {key}\n\n"
        "Send it as `Authorization: Bearer <key>`; set GRADSERVE_API_KEYS to choose keys yourself.",
        err=True,
    )
    return f"{key}:read+predict+train+admin"


@app.command()
def health() -> None:
    """Exit with status 0 if the service on this machine is alive, for whoever watches it. Goes by its settings."""
    import http.client
    import ssl

    settings = load_settings()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 (that is where not)
    connection: http.client.HTTPConnection
    if settings.tls_certificate:
        own = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        own.check_hostname, own.verify_mode = False, ssl.CERT_NONE  # it is for the name that others call us by
        connection = http.client.HTTPSConnection(host, settings.port, timeout=HEALTH_SECONDS, context=own)
    else:
        connection = http.client.HTTPConnection(host, settings.port, timeout=HEALTH_SECONDS)
    connection.request("GET", "/healthz")
    status = connection.getresponse().status
    connection.close()
    if status != 200:
        typer.echo(f"Error: /healthz answers {status}", err=True)
        raise typer.Exit(1)


# ---- backup


@app.command()
def backup(folder: Annotated[Path, typer.Argument(help="A new folder for the copy.")]) -> None:
    """Copy database, datasets and models into a folder, also while the service runs. Uses its settings."""
    from app.storage.backup import back_up, places_of

    settings = load_settings()
    places = places_of(settings.data_dir, settings.models_dir, settings.database)
    typer.echo(f"{back_up(places, folder)} files are in {folder}")


@app.command()
def restore(folder: Annotated[Path, typer.Argument(help="What `gradserve backup` made.")]) -> None:
    """Put a backup where the settings say, if there is nothing yet; the service must not run."""
    from app.storage.backup import places_of
    from app.storage.backup import restore as put_back

    settings = load_settings()
    places = places_of(settings.data_dir, settings.models_dir, settings.database)
    typer.echo(f"{put_back(folder, places)} files were restored")


# ---- train


@app.command()
def train(
    file: Annotated[Path, typer.Argument(help="Table: CSV, TSV, NDJSON, Parquet or Arrow; also gzip.")],
    target: Annotated[list[str], typer.Option(help="Column to predict; repeat it for several.")],
    model: Annotated[str | None, typer.Option(help="Name of the model (default: the file's)")] = None,
    task: Annotated[str | None, typer.Option(help="regression, binary, multiclass or multilabel")] = None,
    hidden: Annotated[str | None, typer.Option(help="Widths of the hidden layers: 64,64")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam, adamw, …")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Step size.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Most passes over the rows.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a gain after which to stop.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is drawn at random.")] = None,
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY.PATH=JSON", help="Any field of POST /train.")] = [],  # noqa: B006
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
        "task": task,
        "network.hidden_features": None if hidden is None else [int(width) for width in hidden.split(",") if width],
        "optimizer.type": optimizer,
        "optimizer.learning_rate": learning_rate,
        "descent.batch_size": batch_size,
        "stop.max_epochs": epochs,
        "stop.patience": patience,
        "seed": seed,
    }
    for path, value in [*options.items(), *map(_assignment, set_)]:
        if value is not None or path not in options:
            _put(body, path, value)
    with connect(url, api_key) as client:
        client.upload_dataset(name, file)
        job = client.submit(body)
        if detach:
            typer.echo(f"Job {job['id']} is {job['state']}; follow it with: gradserve jobs events {job['id']}")
        else:
            _follow(client, job)


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
    rich_print(loss_curve(client.history(job["id"])), metrics_table(job["metrics"]), sep="\n")
    typer.echo(
        f"Stopped by {job['stop_reason']}. Model: {client.base_url}/models/{job['model']}/versions/{job['version']}"
    )


def _leave(client: "Client", job: dict[str, Any]) -> None:
    """After Ctrl-C: cancel, or leave the job to the service."""
    if sys.stdin.isatty() and typer.confirm("\nCancel the job? (No leaves it running)"):
        client.cancel(job["id"])
        typer.echo(f"Job {job['id']} is being cancelled.")
    else:
        typer.echo(f"Job {job['id']} runs on; follow it with: gradserve jobs events {job['id']}")
    raise typer.Exit(130)


# ---- predict


@app.command()
def predict(
    model: str,
    file: Annotated[Path | None, typer.Argument(help="Rows: CSV, TSV, NDJSON, Parquet or Arrow.")] = None,
    row: Annotated[str | None, typer.Option(help='One row as JSON instead: [1, 2] or {"column": 1}')] = None,
    version: Annotated[str | None, typer.Option(help="Version or alias (default: the newest)")] = None,
    output: Annotated[Path | None, typer.Option(help="CSV file to write instead of standard output.")] = None,
    routing_key: Annotated[str | None, typer.Option(help="The same key gets the same version of a canary.")] = None,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Predict the rows of a file, which come back as CSV with predictions added, or a single row."""
    if (file is None) == (row is None):
        raise typer.BadParameter("give either a FILE or --row")
    with connect(url, api_key) as client:
        if row is not None:
            show(client.predict(model, [_json_row(row)], version, routing_key=routing_key))
        elif file is not None:
            from app.predict_file import predict_file

            _write(predict_file(client, model, file, version=version, routing_key=routing_key), output)


def _json_row(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--row") from error


def _write(parts: "Iterator[DataFrame]", output: Path | None) -> None:
    num_rows = 0
    with output.open("w") if output else nullcontext(sys.stdout) as target:
        for part in parts:
            target.write(part.write_csv(include_header=not num_rows))
            num_rows += part.height
    if output:
        typer.echo(f"{num_rows} rows written to {output}")


if __name__ == "__main__":
    main()
