import io

from rich.console import Console

from app.client import Event
from app.terminal import TrainingProgress, duration, listing, loss_curve, metrics_table, number


def rendered(thing: object, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def history(*losses: float) -> list[dict[str, float | None]]:
    return [{"epoch": epoch, "train_loss": loss, "val_loss": None} for epoch, loss in enumerate(losses, 1)]


def test_a_falling_loss_falls_from_left_to_right() -> None:
    lines = loss_curve(history(8.0, 4.0, 2.0, 1.0), width=4, height=4).plain.splitlines()
    assert [line.split("│")[0].strip() for line in lines[:4]] == ["8", "", "", "1"]
    drawn = [[i for i, dots in enumerate(line.split("│")[1]) if dots != "\u2800"] for line in lines[:4]]
    assert drawn == [[0], [1], [2], [3]]
    assert lines[4].endswith("epoch 4")
    assert "train_loss" in lines[5]
    assert "val_loss" not in lines[5]


def test_a_curve_of_one_epoch_of_none_and_of_losses_below_zero() -> None:
    assert loss_curve([]).plain == ""
    assert "epoch 1" in loss_curve(history(0.5)).plain
    assert "-2" in loss_curve(history(1.0, -2.0)).plain


def test_progress_shows_epoch_losses_and_time_left() -> None:
    console = Console(file=io.StringIO(), width=120)
    with TrainingProgress("penguins", console) as progress:
        progress(Event("0", "state", {"state": "queued", "wait_reason": "there is no room [yet]"}))
        progress(Event("1", "state", {"state": "running"}))
        progress(Event("2", "progress", {"fraction": 0.5, "epoch": 5, "num_epochs": 10, "eta_seconds": 62.0}))
        progress(Event("3", "metrics", {"epoch": 5, "train_loss": 0.25, "val_loss": 0.5}))
        progress(Event("4", "warning", {"detail": "column [b] is empty"}))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "penguins" in text
    assert "epoch 5/10" in text
    assert "loss 0.25  val_loss 0.5" in text
    assert "1:02 left" in text
    assert "warning: column [b] is empty" in text
    assert "waiting: there is no room [yet]" in text


def test_a_list_keeps_the_first_column_whole() -> None:
    rows = [{"id": "x" * 30, "state": "queued", "created_at": "2026-01-02T03:04:05.678Z", "version": None}]
    text = rendered(listing(rows, ["id", "state", "created_at", "version"]), width=60)
    assert "x" * 30 in text
    assert "–" in text
    assert "2026-01-02 03:04:05" in rendered(listing(rows, ["id", "created_at"]))


def test_metrics_are_named() -> None:
    metrics = {"val_accuracy": 0.98765, "folds": [{"val_accuracy": 0.9}]}
    assert rendered(metrics_table(metrics)).split() == ["metric", "value", "val_accuracy", "0.9877"]


def test_numbers_and_durations() -> None:
    assert [number(value) for value in (0.123456, 3, None, "a")] == ["0.1235", "3", "–", "a"]
    assert [duration(seconds) for seconds in (0.4, 61, 3661)] == ["0:00", "1:01", "1:01:01"]
