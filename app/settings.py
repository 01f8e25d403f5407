"""The process's environment, read once, in `app.main` and the command line; everyone else is given values."""

import os
import re
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

API_KEY = r"[^,]+:(read|predict|train|admin)(\+(read|predict|train|admin))*"


ORIGIN = r"\*|[a-z][a-z0-9+.-]*://[^/?#\s]+"


def listed(text: str) -> list[str]:
    """The parts of a comma separated setting."""
    return [part.strip() for part in text.split(",") if part.strip()]


class Settings(BaseSettings):
    """Each field is the environment variable (or `.env` line) of its name in capitals, after `GRADSERVE_`."""

    model_config = SettingsConfigDict(
        env_prefix="GRADSERVE_", env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    models_dir: Path = Field(Path("models"), description="published versions: models/<name>/<version>/")
    data_dir: Path = Field(Path("data"), description="datasets, checkpoints of running jobs and the jobs database")
    database_url: str | None = Field(
        None, description="SQLAlchemy URL, as postgresql+psycopg://user@host/name; absent: SQLite in the data folder"
    )
    api_keys: SecretStr = Field(
        SecretStr(""), description="comma separated `key:scope+scope`; scopes: read, predict, train, admin"
    )

    @field_validator("allowed_origins")
    @classmethod
    def _origins_are_origins(cls, value: str) -> str:
        if not all(re.fullmatch(ORIGIN, origin) for origin in listed(value)):
            raise ValueError("an origin is https://name or https://name:port, without a path")
        return value

    @field_validator("api_keys")
    @classmethod
    def _entries_have_scopes(cls, value: SecretStr) -> SecretStr:
        if not all(re.fullmatch(API_KEY, entry) for entry in listed(value.get_secret_value())):
            raise ValueError("an entry must be key:scope+scope with scopes of read, predict, train, admin")
        return value

    allowed_hosts: str = Field(
        "",
        description="comma separated names by which the service may be reached, `*.example.org` for all below one; "
        "absent: any where there are keys, else none but localhost and addresses, which always are",
    )
    allowed_origins: str = Field(
        "",
        description="comma separated origins (`https://app.example.org`) whose pages may call the service from a "
        "browser; `*`: all",
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file with the certificate and its chain; `gradserve serve` then speaks HTTPS"
    )
    tls_key: Path | None = Field(None, description="PEM file with its private key; absent: in the certificate's file")
    host: str = Field("127.0.0.1", description="where `gradserve serve` listens")
    port: int = Field(8000, ge=0, le=65535, description="where `gradserve serve` listens")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="what `auto` in a training spec means, and where models are served as long as there is room: auto, "
        "cpu, cuda or cuda:N",
    )
    max_body_bytes: int = Field(256 * 2**20, ge=1, description="largest request body, datasets apart")
    max_dataset_bytes: int = Field(64 * 2**30, ge=1, description="largest dataset upload")
    max_rows: int = Field(1_000_000, ge=1, description="most rows in one JSON predict, evaluate or train body")
    max_rows_bytes: int = Field(
        4 * 2**30, ge=1, description="encoded rows that a job holds in memory; of a larger table it maps a file"
    )
    max_columns: int = Field(10_000, ge=1, description="most columns of a table")
    max_parameters: int = Field(2_000_000_000, ge=1, description="most parameters of a network")
    max_running_jobs: int = Field(
        default_factory=lambda: min(4, os.cpu_count() or 1),
        ge=1,
        description="jobs that run at once, as far as there is memory for them; by default one per core, at most 4",
    )
    max_queued_jobs: int = Field(10_000, ge=1, description="jobs that wait; one more is answered 429")
    max_queued_jobs_per_key: int = Field(
        1_000, ge=1, description="jobs of one key that wait or are paused; one more is answered 429, and nobody else's"
    )
    max_requests_per_second: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="requests of one key to one API process, with bursts of twice as many; more are answered 429; "
        "0: no limit",
    )
    max_connections: int = Field(
        10_000,
        ge=1,
        description="connections to one API process; more are answered 503. Where the system allows fewer open files, "
        "so many less 256",
    )
    max_header_seconds: float = Field(
        20.0, gt=0, allow_inf_nan=False, description="longest wait for a request's headers, from their first byte on"
    )
    max_stall_seconds: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="in any such time, a body must come and an answer must be taken at `min_bytes_per_second`, or the "
        "connection is closed; 0: for ever",
    )
    min_bytes_per_second: float = Field(
        500.0, gt=0, allow_inf_nan=False, description="the slowest that a body comes or an answer is taken"
    )
    max_wait_seconds: float = Field(60.0, ge=0, description="longest `Prefer: wait`")
    checkpoint_interval_seconds: float = Field(30.0, gt=0, description="a running job can lose at most this much work")
    worker_timeout_seconds: float = Field(
        300.0, gt=0, description="a worker that gives no sign of life for this long is ended and its job resumed"
    )
    keep_jobs_days: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="finished jobs are forgotten this long after their end; 0: never"
    )
    max_finished_jobs: int = Field(
        0, ge=0, description="finished jobs that are kept; of more, the oldest are forgotten; 0: all"
    )
    keep_events_days: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="events of a finished job, but for its last, are removed this long after its end; 0: never",
    )
    max_events_per_job: int = Field(
        20_000,
        ge=0,
        description="events that are kept of a job; of more, the oldest progress is removed, and once the job has "
        "ended the oldest of all; 0: all",
    )
    keep_orphans_seconds: float = Field(
        3600.0,
        gt=0,
        allow_inf_nan=False,
        description="tables that no dataset and no job names, and uploads that were cut off, are removed this long "
        "after their last use; longer than any request takes",
    )
    housekeeping_interval_seconds: float = Field(
        600.0, gt=0, allow_inf_nan=False, description="how often what is not kept any more is removed"
    )
    cache_bytes: int = Field(4 * 2**30, ge=1, description="of memory for loaded versions: weights, and 64 KiB for each")
    max_batch_rows: int = Field(
        8192, ge=1, description="most rows in one forward pass; a request of more goes through in parts"
    )
    max_queued_rows: int = Field(
        1_000_000,
        ge=1,
        description="rows under way for a version at once; a request that makes them more is answered 429",
    )
    max_queued_bytes: int = Field(2**30, ge=1, description="the same in bytes of encoded rows")
    max_held_bytes: int = Field(
        2**30, ge=1, description="bytes of bodies that ask for predictions held at once; one more is answered 429"
    )
    log_format: str = Field(
        "auto", pattern=r"^(auto|json|console)$", description="json, console, or console on a terminal only"
    )
    log_level: str = Field(
        "info", pattern=r"^(debug|info|warning|error)$", description="least severe level that is logged"
    )

    @property
    def database(self) -> str:
        """The URL of the database, whether it was given or is a file in the data folder."""
        return self.database_url or f"sqlite:///{self.data_dir / 'gradserve.db'}"

    @property
    def key_file(self) -> Path:
        """Where `gradserve keys` keeps what it has made."""
        return self.data_dir / "keys.json"
