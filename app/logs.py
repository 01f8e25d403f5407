"""Structured logs on stderr: JSON lines, or coloured text for a person at a terminal."""

import logging
import sys
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog

_lines: logging.StreamHandler[Any] | None = None  # takes JSON lines as they are


def configure(log_format: str, level: str) -> None:
    """Send structlog and the standard library's logging through one formatter."""
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    # not rich's tracebacks, which show variables, and with them whatever secret a request has
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer = plain if console else structlog.processors.JSONRenderer()
    errors: list[structlog.typing.Processor] = [] if console else [structlog.processors.format_exc_info]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *errors, renderer],
        )
    )
    global _lines
    _lines = None if console else logging.StreamHandler(sys.stderr)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # app.access has the id and the time as well


def write(logger: str, events: Collection[dict[str, Any]]) -> None:
    """Lines of level info, as if each had been logged by this logger.

    JSON goes past structlog and logging, where a line takes several times as long as a small prediction.
    """
    if not events or not logging.getLogger(logger).isEnabledFor(logging.INFO):
        return
    if _lines is None:
        for event in events:
            structlog.get_logger(logger).info(**event)
        return
    common = {"logger": logger, "level": "info", "timestamp": f"{datetime.now(UTC).replace(tzinfo=None).isoformat()}Z"}
    text = b"\n".join([orjson.dumps({**event, **common}) for event in events])
    _lines.handle(logging.makeLogRecord({"msg": text.decode()}))
