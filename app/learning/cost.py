"""What a step takes in either engine, by a model with constants of a server's core of 2023.

On another machine, and of layers that are unlike the usual ones, a step takes so many times as long: that is its pace,
which `app.learning.stopwatch` measures where the choice of the engine depends on it.
"""

from dataclasses import dataclass

STEP_SECONDS = 40e-6  # eager, whatever the network: the loss, plain descent, Python
OPTIMIZER_SECONDS = {"sgd": 0.0, "adam": 40e-6, "adamw": 40e-6, "adagrad": 100e-6}  # eager, beyond that
UNFUSED_SECONDS = 200e-6  # of the other optimizers, which take many kernels
MODULE_SECONDS = 22e-6  # eager, of a module without children: forward and backward
CHAINED_SECONDS = 8e-6  # eager, of a module whose gradients are taken by hand
COMPILED_STEP_SECONDS = 3e-6
COMPILED_MODULE_SECONDS = 2e-6
THREAD_SECONDS = 225e-6  # of work in an operation that is worth waking a thread for
FLOPS_PER_THREAD = 8e10  # per second, of small matrices
MOVED_PER_SECOND = 2e10  # bytes, by however many threads: some come from memory, others from a cache
MERGED = 0.5  # of what goes from one operation to the next: merged into one loop, it stays in registers
COMPILE_SECONDS, COMPILE_MODULE_SECONDS = 8.0, 0.4
MARGIN = 1.5  # a compile should save this many times what it takes, as a run may end early
FAR = 10.0  # times what the model says: no machine's steps are that much slower, and its compiler is not
LEAST_SHARE = 0.2  # of an eager step, which dispatch has to be; below it, the model's errors are larger than the gain
EAGER_START_SECONDS = 0.5


@dataclass(frozen=True)
class StepCost:
    """Of a step with `num_modules` modules without children, and `flops` forward and backward, on so many threads.

    Of the modules, `num_chained` are those of `app.learning.chain`. `moved_bytes`: what the step reads and writes, of
    it `passed_bytes` from one operation to the next; `num_operations`: of its gradient.
    """

    num_modules: int
    flops: float
    num_threads: int
    optimizer: str = "sgd"
    num_chained: int = 0
    moved_bytes: float = 0.0
    passed_bytes: float = 0.0
    num_operations: float = 1.0

    def threads_worth_waking(self, num_cores: int) -> int:
        """So many that the mean operation has enough work for each: between operations, all but one sleep."""
        on_one_thread = self.flops / FLOPS_PER_THREAD + self._moving_seconds
        return max(1, min(num_cores, int(on_one_thread / self.num_operations / THREAD_SECONDS)))

    @property
    def eager_seconds(self) -> float:
        update = OPTIMIZER_SECONDS.get(self.optimizer, UNFUSED_SECONDS)
        modules = MODULE_SECONDS * (self.num_modules - self.num_chained) + CHAINED_SECONDS * self.num_chained
        return STEP_SECONDS + update + modules + self._arithmetic_seconds + self._moving_seconds

    @property
    def compiled_seconds(self) -> float:
        modules = COMPILED_MODULE_SECONDS * self.num_modules
        merged = MERGED * self.passed_bytes / MOVED_PER_SECOND
        return COMPILED_STEP_SECONDS + modules + self._arithmetic_seconds + self._moving_seconds - merged

    @property
    def compile_seconds(self) -> float:
        return COMPILE_SECONDS + COMPILE_MODULE_SECONDS * self.num_modules

    @property
    def _arithmetic_seconds(self) -> float:
        return self.flops / (FLOPS_PER_THREAD * self.num_threads)

    @property
    def _moving_seconds(self) -> float:
        return self.moved_bytes / MOVED_PER_SECOND

    @property
    def saved_seconds(self) -> float:
        """Of an eager step, by compiling it; 0 where it is nearly all arithmetic."""
        saved = self.eager_seconds - self.compiled_seconds
        return saved if saved >= LEAST_SHARE * self.eager_seconds else 0.0

    def may_repay_compiling(self, num_steps: int) -> bool:
        """Whether it takes a clock to tell: otherwise so many steps are too few on any machine."""
        return FAR * self.saved_seconds * num_steps >= self.compile_seconds

    def repays_compiling(self, num_steps: int, pace: float = 1.0, compile_pace: float = 1.0) -> bool:
        """Whether so many steps are done sooner if they are compiled, the compile included.

        Args:
            pace: how many times as long as here an eager step was measured to take.
            compile_pace: the same of a compile.
        """
        return pace * self.saved_seconds * num_steps >= MARGIN * compile_pace * self.compile_seconds

    def eager_steps(self, num_steps: int) -> int:
        """How many steps a compiled run of so many takes eagerly first: a part that costs little, and at least one."""
        return max(1, min(num_steps // 100, int(EAGER_START_SECONDS / self.eager_seconds)))
