"""How long epochs and steps take, for `/metrics`."""

from collections.abc import Sequence

from app.storage.counters import Counters, Histogram


class EpochTimes:
    """Used in the supervisor's thread."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._of: dict[str, tuple[Histogram, int, int]] = {}

    def add(self, model: str, num_steps: int, seconds: Sequence[float]) -> None:
        """Epochs have ended: how long each took, and the steps of all."""
        if model not in self._of:
            histogram = Histogram(self._counters, "gradserve_training_epoch_seconds", model)
            steps = "gradserve_training_step_seconds", model
            self._of[model] = histogram, self._counters.cell(*steps, "count"), self._counters.cell(*steps, "sum")
        epochs, count, total = self._of[model]
        epochs.observe(*seconds)
        self._counters.values[count] += num_steps
        self._counters.values[total] += sum(seconds)
