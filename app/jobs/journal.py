"""The watcher of a job's fits: reports, checkpoints, and stops on request."""

import time
from collections import deque
from typing import Any

from torch import Tensor

from app.errors import StorageFailed
from app.jobs.order import Control, Emit
from app.jobs.session import Session
from app.learning.fit import State
from app.specs.training import TrainingSpec
from app.storage.checkpoints import Checkpoints

PROGRESS_SECONDS = 0.2
MAX_SEEN = 50  # looks at how far it was that are kept, of those ten seconds or more
PACE_SECONDS = 10.0  # that a run is followed for before it is foretold by them alone


class Journal:
    """`folds` are the metrics of the folds that are done; `history` has a row for each epoch of all fits."""

    def __init__(
        self, spec: TrainingSpec, checkpoints: Checkpoints, emit: Emit, control: Control, interval_seconds: float
    ) -> None:
        self.spec, self.checkpoints, self.emit, self.control = spec, checkpoints, emit, control
        self.interval_seconds = interval_seconds
        self.folds: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.num_fits = spec.num_fits
        self.pace = Pace()
        self.last_checkpoint = self.last_progress = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What a session goes on from, or None where the job begins."""
        found = self.checkpoints.load()
        if found is None:
            if self.checkpoints.path.exists():
                self.warn("another release wrote the checkpoint of this run, so it begins anew")
            return None
        tensors, position = found
        self.folds = position["folds"]
        self.history = self.checkpoints.load_history(position["num_rows"])
        for row in self.history:  # told before, but perhaps not written down when the service was killed
            self.emit("metrics", row)
        return tensors, position["session"]

    def watch(self, session: Session, fold: int | None) -> None:
        self.session, self.fold = session, fold
        self.epochs_before = len(self.history) - session.state.epoch
        before = {row.get("fold"): row["step"] for row in self.history[: self.epochs_before]}
        self.steps_before = sum(before.values())

    def end_fold(self, metrics: dict[str, Any], state: State, reason: str) -> None:
        """Count a fit whose session has no more to say."""
        del self.session
        best = metrics.get("best_epoch", state.epoch)
        self.folds.append(metrics | {"best_epoch": best, "num_epochs": state.epoch, "stop_reason": reason})

    def warn(self, detail: str) -> None:
        self.emit("warning", {"detail": detail})

    # ---- what `fit` tells

    def epoch_done(self, _state: State, metrics: dict[str, Any]) -> None:
        if self.fold is not None:  # epochs are counted through, so that each has a number of its own
            metrics = metrics | {"epoch": self.epochs_before + metrics["epoch"], "fold": self.fold + 1}
        self.history.append(metrics)
        self.emit("metrics", metrics)

    def pause_point(self, _state: State) -> str | None:
        now = time.monotonic()
        if now - self.last_progress >= PROGRESS_SECONDS:
            self.last_progress = now
            self.emit("progress", self.progress())
        if self.control.request is None and now - self.last_checkpoint >= self.interval_seconds:
            self.checkpoint()
        return self.control.request

    def checkpoint(self) -> None:
        self.emit("progress", self.progress())  # first: who dies right after a checkpoint is known to have got on
        tensors, session = self.session.export()
        position = {"folds": self.folds, "num_rows": len(self.history), "session": session}
        try:
            self.checkpoints.save(tensors, position, self.history, session["best_file"])
        except OSError as error:
            if not StorageFailed.of(error):
                raise
            self.warn(f"a checkpoint could not be written ({error.strerror}); the last one that could stands")
        self.last_checkpoint = time.monotonic()

    # ---- what is told of it

    def losses(self) -> dict[str, Any]:
        """The losses of the epoch whose weights are kept."""
        kept = self.best_epoch().get("best_epoch", self.session.state.epoch)
        row = self.history[self.epochs_before + kept - 1]
        return {key: row[key] for key in ("train_loss", "val_loss") if row[key] is not None}

    def best_epoch(self) -> dict[str, Any]:
        """The epoch whose weights are kept, where that is the best."""
        state = self.session.state
        return {} if state.best_weights is None else {"best_epoch": state.best_epoch}

    def progress(self) -> dict[str, Any]:
        """How far, by the nearest of the ends that are known; within an epoch, by its steps."""
        state, stop = self.session.state, self.session.spec.stop
        epochs = state.epoch + state.step_in_epoch / self.session.batching.steps_per_epoch
        parts = [
            epochs / stop.max_epochs if stop.max_epochs else 0.0,
            state.step / stop.max_steps if stop.max_steps else 0.0,
            state.elapsed_seconds / stop.max_seconds if stop.max_seconds else 0.0,
        ]
        fraction = min(1.0, max(parts))
        num_epochs = stop.max_epochs and stop.max_epochs * self.num_fits
        if stop.max_epochs and len(self.folds) == self.num_fits - 1:  # the last fit is as long as the folds tell it
            num_epochs = self.epochs_before + stop.max_epochs
        whole = state.elapsed_seconds / fraction if fraction else None
        done = len(self.folds) + fraction
        seconds = self.pace.seconds(time.monotonic(), done) or whole
        return {
            "epoch": self.epochs_before + state.epoch,
            "num_epochs": num_epochs,
            "step": self.steps_before + state.step,
            "fraction": done / self.num_fits,
            "eta_seconds": None if seconds is None else seconds * (self.num_fits - done),
        }


class Pace:
    """How long a fit takes at the pace of late, whatever was slower before: eager steps, or a compile beside them."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()
        self._begun: float | None = None

    def seconds(self, now: float, done: float) -> float | None:
        """What a whole fit takes, where so many were `done` by `now`; None until that can be told."""
        self._begun = now if self._begun is None else self._begun
        lately = max(PACE_SECONDS, (now - self._begun) / 5)
        if not self._seen or now - self._seen[-1][0] >= lately / MAX_SEEN:
            self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - lately:
            self._seen.popleft()
        before, done_before = self._seen[0]
        return (now - before) / (done - done_before) if now - before >= lately and done > done_before else None
