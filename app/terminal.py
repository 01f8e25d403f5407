"""What the command line draws: a run's live progress, its metrics, its loss curve, and lists as tables."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from app.client import Event

Json = dict[str, Any]


class TrainingProgress:
    """A live progress bar, fed with the events of a run: `with TrainingProgress("penguins") as progress: …`."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        columns = ("{task.description}", "{task.fields[epochs]}", "{task.fields[loss]}", "{task.fields[eta]}")
        title_column, *facts = [TextColumn(column) for column in columns]
        self._progress = Progress(title_column, BarColumn(), *facts, console=console)
        self._num_epochs: int | None = None
        self._task = self._progress.add_task(title, total=1.0, epochs="", loss="", eta="waiting")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        data = event.data
        match event.type:
            case "progress":
                self._num_epochs = data["num_epochs"]
                eta, epochs = _eta(data["eta_seconds"]), self._epochs(data["epoch"])
                self._update(completed=data["fraction"], eta=eta, epochs=epochs)
            case "metrics":
                self._update(loss=_losses(data), epochs=self._epochs(data["epoch"]))
            case "warning":
                self._note(f"warning: {data['detail']}")
            case "state":
                if reason := data.get("wait_reason"):
                    self._note(f"waiting: {reason}")
                done = {"completed": 1.0} if data["state"] == "succeeded" else {}
                self._update(eta=data["state"], **done)

    def _epochs(self, epoch: int) -> str:
        return f"epoch {epoch}/{self._num_epochs}" if self._num_epochs else f"epoch {epoch}"

    def _note(self, text: str) -> None:
        self._progress.console.print(Text(text, "yellow"))

    def _update(self, **fields: Any) -> None:
        self._progress.update(self._task, **fields)


def _losses(metrics: Json) -> str:
    names = {"train_loss": "loss", "val_loss": "val_loss"}
    return "  ".join(f"{name} {number(metrics[key])}" for key, name in names.items() if metrics.get(key) is not None)


def _eta(seconds: float | None) -> str:
    return "" if seconds is None else f"{duration(seconds)} left"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: Any) -> str:
    """Four significant digits of a float; everything else as it reads."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)


def metrics_table(metrics: Json) -> Table:
    """The numbers among the metrics; what a cross-validation tells of each fold is left to `gradserve jobs show`."""
    numbers = {name: value for name, value in metrics.items() if not isinstance(value, list | dict)}
    return listing([{"metric": name, "value": value} for name, value in numbers.items()], ["metric", "value"])


def listing(rows: Iterable[Json], columns: Sequence[str]) -> Table:
    """Rows by column; the first one names a row and is never cut."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column == columns[0], overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(column, row.get(column))) for column in columns))
    return table


def _cell(column: str, value: Any) -> str:
    return value[:19].replace("T", " ") if column.endswith("_at") and value else number(value)


# ---- the loss curve, in braille: a character is 2 dots wide and 4 high

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
STYLES = {"train_loss": "cyan", "val_loss": "magenta"}


def loss_curve(history: Sequence[Json], width: int = 64, height: int = 10) -> Text:
    """Losses over epochs, on a logarithmic axis where all are positive. Empty when there is nothing to draw."""
    curves = {name: _curve(history, name, 2 * width) for name in STYLES if _known(history, name)}
    if not curves:
        return Text()
    low, high = min(curve.min() for curve in curves.values()), max(curve.max() for curve in curves.values())
    scale = np.log if low > 0 else np.asarray
    canvas = Canvas(width, height)
    for name, curve in curves.items():
        canvas.plot((scale(high) - scale(curve)) / ((scale(high) - scale(low)) or 1.0), STYLES[name])
    labels = {0: number(float(high)), height - 1: number(float(low))}
    margin = max(map(len, labels.values()))
    lines = [Text(f"{labels.get(row, ''):>{margin}} │").append_text(canvas.line(row)) for row in range(height)]
    end = f" epoch {history[-1]['epoch']}"
    lines.append(Text(f"{'':{margin}} └{end:─>{width}}"))
    legend = ((f"━ {name}  ", STYLES[name]) for name in curves)
    return Text("\n").join([*lines, Text.assemble(" " * (margin + 2), *legend)])


def _known(history: Sequence[Json], name: str) -> list[Json]:
    return [row for row in history if row.get(name) is not None]


def _curve(history: Sequence[Json], name: str, num_points: int) -> Any:
    """`num_points` values of a loss between the first epoch and the last."""
    rows = _known(history, name)
    epochs = np.linspace(history[0]["epoch"], history[-1]["epoch"], num_points)
    return np.interp(epochs, [row["epoch"] for row in rows], [row[name] for row in rows])


class Canvas:
    """Characters of dots; where two curves meet in one, the later gives it its colour."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._cells: dict[tuple[int, int], tuple[int, str]] = {}

    def plot(self, depths: Any, style: str) -> None:
        """A dot per column of dots, at its depth between 0 (the top) and 1."""
        for x, y in enumerate(np.rint(depths * (4 * self._height - 1)).astype(int)):
            dots, _ = self._cells.get((y // 4, x // 2), (0, ""))
            self._cells[y // 4, x // 2] = (dots | DOTS[y % 4][x % 2], style)

    def line(self, row: int) -> Text:
        cells = (self._cells.get((row, column), (0, "")) for column in range(self._width))
        return Text.assemble(*((chr(0x2800 + dots), style) for dots, style in cells))
