"""Steps on a CUDA device as a captured graph: one launch does a whole step, and no tensor comes back to the host."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from app.errors import EngineFailed
from app.learning.step_graph import StepRecipe, StepTensors, make_step
from app.learning.trial import taken_back

WARM_UP_TURNS = 3  # before a capture, so that libraries have made their plans and workspaces


class Turn:
    """One step whose place among the streams is kept on the device, and moves on by itself."""

    def __init__(self, recipe: StepRecipe, tensors: StepTensors) -> None:
        self.step, self.tensors = make_step(recipe), tensors
        self.place = torch.zeros(1, dtype=torch.int64, device=tensors.losses.device)

    def __call__(self) -> None:
        tensors = self.tensors
        one = [stream.index_select(0, self.place)[0] for stream in tensors.streams]
        *after, loss = self.step(*tensors.state, *tensors.fixed, *one)
        torch._foreach_copy_(tensors.state, after)
        tensors.losses.index_copy_(0, self.place, loss.view(1))
        self.place += 1


class CapturedSteps:
    """A turn as a CUDA graph.

    Raises:
        EngineFailed: in the middle of a capture, after which nothing more can be drawn or computed on the device.
        RuntimeError: before, which leaves all as it was.
    """

    def __init__(self, recipe: StepRecipe, tensors: StepTensors) -> None:
        self.turn = Turn(recipe, tensors)
        self.graph = torch.cuda.CUDAGraph()
        with taken_back(tensors.state, tensors.losses.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for number in range(WARM_UP_TURNS):
                    self.turn.place.zero_()
                    with _waits_refused(number == WARM_UP_TURNS - 1):
                        self.turn()
            torch.cuda.current_stream().wait_stream(stream)
            self._capture()

    def _capture(self) -> None:
        has_begun = False
        try:
            with torch.cuda.graph(self.graph):
                has_begun = True
                self.turn()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not has_begun:
                raise
            raise EngineFailed(f"the device can't capture the steps of this run ({error}); use engine eager") from error

    def run(self, first: int, last: int) -> None:
        """Take the steps at these places of the streams (the last one exclusive)."""
        self.turn.place.fill_(first)
        for _ in range(first, last):
            self.graph.replay()


@contextmanager
def _waits_refused(refused: bool) -> Iterator[None]:
    """Let an operation that waits for the device fail here, where it does no harm; in a capture it would."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error" if refused else before)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
