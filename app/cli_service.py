"""The commands of the machine that the service runs on: serve, health, backup, restore. They go by its settings."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli_keys import load_settings

if TYPE_CHECKING:
    from app.settings import Settings

HANG_SECONDS = 30  # without an answer, after which an API process is replaced; importing torch blocks it for some
MAX_OPEN_FILES = 2**16
HEALTH_SECONDS = 4.0  # to wait for an answer; less than what containers give
GRACE_SECONDS = 10  # for requests that are being answered when the service is asked to stop


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on (default: GRADSERVE_HOST or 127.0.0.1)")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on (default: GRADSERVE_PORT or 8000)")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="API processes.")] = 1,
) -> None:
    """Start the service. Settings are GRADSERVE_… environment variables: see docs/settings.md."""
    import uvicorn

    from app.processes import run

    settings = load_settings()
    host, port = host or settings.host, settings.port if port is None else port
    if reason := _why_not_there(host, port):
        typer.echo(f"Error: {reason}", err=True)
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
        "access_log": False,  # app.access has the id and the time as well
        "timeout_graceful_shutdown": GRACE_SECONDS,
        "timeout_worker_healthcheck": HANG_SECONDS,
        "server_header": False,
        "ssl_certfile": settings.tls_certificate,
        "ssl_keyfile": settings.tls_key,
    }
    run(uvicorn.Config("app.main:app", workers=workers, **options))


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
    """Bring the database up to date. What is wrong with it, the models' folder or the keys is said now, in a line."""
    from app.storage.database import Database
    from app.storage.keys import KeyFile
    from app.storage.migrations import migrate

    KeyFile(settings.key_file).read()
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database)
    migrate(database)
    database.close()


def _why_not_there(host: str, port: int) -> str | None:
    """A sentence where nothing can listen at this address."""
    import errno
    import socket

    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"port {port} of {host} is taken by another program; choose one with --port"
        return f"port {port} of {host} can't be listened on: {error.strerror}; choose others with --host and --port"
    return None


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


def backup(folder: Annotated[Path, typer.Argument(help="A new folder for the copy.")]) -> None:
    """Copy database, datasets and models into a folder, also while the service runs. Uses its settings."""
    from app.storage.backup import back_up, places_of

    settings = load_settings()
    places = places_of(settings.data_dir, settings.models_dir, settings.database)
    typer.echo(f"{back_up(places, folder)} files are in {folder}")


def restore(folder: Annotated[Path, typer.Argument(help="What `gradserve backup` made.")]) -> None:
    """Put a backup where the settings say, if there is nothing yet; the service must not run."""
    from app.storage.backup import places_of
    from app.storage.backup import restore as put_back

    settings = load_settings()
    places = places_of(settings.data_dir, settings.models_dir, settings.database)
    typer.echo(f"{put_back(folder, places)} files were restored")
