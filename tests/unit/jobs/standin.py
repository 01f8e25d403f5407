"""A training module without torch: adds 1 to a number per epoch, checkpoints it, and misbehaves where the spec says so.

spec: {"epochs": N, "gate": path, "die_at": epoch, "die_times": N, "hang_at": epoch, "deaf": bool, "fail_with": "…",
"keeps": bytes, of memory, "forks": bool, a process that ends at once and is not waited for}
Where the environment names a file as NO_FORKS, the system starts no process while that is there.
`gate`: an epoch above the number in that file waits, so that a test decides how far a run gets. Each start of a job
adds a line to `starts-<job id>`: process id, time, and the epoch to go on from.
"""

import errno
import json
import os
import signal
import threading
import time
from pathlib import Path

from app.errors import Diverged
from app.jobs.order import Control, Emit, Outcome, WorkOrder
from app.storage.models import ModelStore

_kept: list[bytes] = []
_fork = os.fork


def _fork_if_allowed() -> int:
    if Path(os.environ["NO_FORKS"]).exists():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return _fork()


if "NO_FORKS" in os.environ:
    os.fork = _fork_if_allowed


def free_cards() -> None:
    pass


def train(order: WorkOrder, emit: Emit, control: Control) -> Outcome:
    spec = order.spec
    checkpoint = order.job_dir / "checkpoint.json"
    epoch = json.loads(checkpoint.read_text()) if checkpoint.exists() else 0
    with (Path(order.data_dir) / f"starts-{order.job_id}").open("a") as starts:
        starts.write(f"{os.getpid()} {time.time()} {epoch}\n")
    _fail(spec.get("fail_with"))
    _kept.append(b"x" * spec.get("keeps", 0))
    if spec.get("forks") and os.fork() == 0:
        os._exit(0)
    for done in range(1, epoch + 1):
        emit("metrics", _metrics(done))
    while epoch < spec.get("epochs", 1):
        request = None if spec.get("deaf") else control.request
        if request == "cancel":
            return Outcome("cancelled")
        if request == "pause":
            _save(checkpoint, epoch)
            return Outcome("paused")
        if "gate" in spec and epoch >= int(Path(spec["gate"]).read_text()):
            time.sleep(0.002)
            continue
        epoch += 1
        _misbehave(order, epoch)
        _save(checkpoint, epoch)  # first: a test that has heard of an epoch may kill this process at once
        emit("metrics", _metrics(epoch))
        emit("progress", {"epoch": epoch, "num_epochs": spec.get("epochs", 1), "step": epoch, "fraction": 0.5})
    staged = ModelStore(Path(order.models_dir)).staging(order.job_id)
    (staged / "config.json").write_text(json.dumps({"job_id": order.job_id, "epoch": epoch}))
    return Outcome("succeeded", {"train_loss": 1 / epoch}, "max_epochs")


def _save(checkpoint: Path, epoch: int) -> None:
    """By one rename, as real checkpoints are."""
    written = checkpoint.with_suffix(".new")
    written.write_text(json.dumps(epoch))
    written.replace(checkpoint)


def _metrics(epoch: int) -> dict[str, object]:
    return {"epoch": epoch, "step": epoch, "train_loss": 1 / epoch, "val_loss": float("nan"), "learning_rate": 0.1}


def _fail(how: str | None) -> None:
    if how == "diverged":
        raise Diverged("the loss is not finite; try a smaller learning rate")
    if how == "memory":
        raise MemoryError("60 GiB")
    if how == "disk":
        raise OSError(errno.ENOSPC, "No space left on device")
    if how == "bug":
        raise ZeroDivisionError("division by zero")


def _misbehave(order: WorkOrder, epoch: int) -> None:
    spec = order.spec
    deaths = len((Path(order.data_dir) / f"starts-{order.job_id}").read_text().splitlines())
    if epoch == spec.get("hang_at") and deaths == 1:
        threading.Event().wait()
    if epoch == spec.get("die_at") and deaths <= spec.get("die_times", 1):
        os.kill(os.getpid(), signal.SIGKILL)
