"""How long epochs and steps take, for `/metrics`."""

from app.storage.counters import Counters, Histogram


class EpochTimes:
    """Used in the supervisor's thread."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._epochs: dict[str, Histogram] = {}

    def add(self, model: str, num_steps: int, seconds: float) -> None:
        """An epoch of so many steps has ended."""
        counters = self._counters
        if model not in self._epochs:
            self._epochs[model] = Histogram(counters, "gradserve_training_epoch_seconds", model)
        self._epochs[model].observe(seconds)
        counters.values[counters.cell("gradserve_training_step_seconds", model, "count")] += num_steps
        counters.values[counters.cell("gradserve_training_step_seconds", model, "sum")] += seconds
