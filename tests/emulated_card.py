"""A CUDA device made of the host's memory, as a plugin of pytest: `python -m pytest -p tests.emulated_card tests/gpu`.

What torch computes for the device is computed on the CPU. Storages carry a mark of where they are said to be. As on a
real card it is an error to compute with tensors of both, to have NumPy read the device's, and to wait for it, or copy
to or from it, while a graph is captured. A graph notes its operations, and replays them. Streams do nothing: what would
come too early on a real card goes well here. Nothing is learnt of speed, of rounding, or of memory that runs out.
"""

import contextlib
from collections.abc import Callable, Iterator
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo  # which looks through torch.cuda when it is imported: before that is another
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST, CARD = torch.device("cpu"), torch.device("cuda:0")
TOTAL_BYTES = 8 * 2**30
READS = "aten._local_scalar_dense.default"
MOVES = {READS, "aten.copy_.default", "aten._to_copy.default"}
WITH_INDICES = ("aten.index.", "aten.index_put", "aten._index_put")  # which may be the host's

marked: dict[int, torch.UntypedStorage] = {}
"""The card's storages; they are kept, so that none of the host's has the address of one."""


def is_marked(tensor: Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata in marked


def mark(tensor: Tensor) -> None:
    with torch._C.DisableTorchFunction():
        storage = tensor.untyped_storage()
    marked[storage._cdata] = storage


def tensors_in(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class Moved(torch.autograd.Function):
    """A copy on the card or on the host."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, to_card: bool, dtype: torch.dtype) -> Tensor:
        ctx.was = is_marked(tensor), tensor.dtype
        with torch._C.DisableTorchFunction(), no_dispatch():
            copy = tensor.detach().to(dtype, copy=True)
        if to_card:
            mark(copy)
        return copy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return Moved.apply(gradient, *ctx.was), None, None


class Kernels(TorchDispatchMode):
    """Below autograd: which operations may be, and where their results are."""

    def __torch_dispatch__(self, kernel: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs, given = str(kernel), kwargs or {}, tensors_in((args, kwargs))
        if any(tensor.is_meta for tensor in given):
            return kernel(*args, **kwargs)
        if name.startswith("aten._pin_memory"):
            return args[0].clone()
        card, host = ([tensor for tensor in given if is_marked(tensor) is here] for here in (True, False))
        if card and name in MOVES and (host or name == READS):
            Graph.wait()
        elif card and any(tensor.ndim for tensor in host) and not name.startswith(WITH_INDICES):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")
        with torch._C.DisableTorchFunction():
            out = kernel(*args, **kwargs)
        if card and name != READS:
            for tensor in tensors_in(out):
                mark(tensor)
        if Graph.captured is not None and card:
            Graph.captured.operations.append((kernel, args, kwargs, out))
        return out


class Functions(TorchFunctionMode):
    """Above autograd: what has a device's name in it."""

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if function == Tensor.device.__get__ and is_marked(args[0]):  # type: ignore[attr-defined]
            return CARD
        if function == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return is_marked(args[0])
        if name in ("numpy", "__array__") and is_marked(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name in ("to", "cpu", "cuda") and args and isinstance(args[0], Tensor):
            return self._to(function, *args, **kwargs)
        device = kwargs.get("device")
        if device is None or torch.device(device).type == "meta":
            return function(*args, **kwargs)
        made = function(*args, **{**kwargs, "device": HOST})
        on_card = torch.device(device).type == "cuda"
        if is_marked(made) is on_card:
            return made
        moved = Moved.apply(made, on_card, made.dtype)
        if Graph.captured is not None:
            Graph.captured.operations.append((torch.ops.aten.copy_.default, (moved.detach(), made), {}, moved))
        return moved

    def _to(self, function: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        places = [value for value in (*args, kwargs.get("device")) if isinstance(value, str | int | torch.device)]
        places = [torch.device(place) for place in places if not isinstance(place, bool)]
        places += {"cpu": [HOST], "cuda": [CARD]}.get(function.__name__, [])
        if tensor.is_meta or any(place.type == "meta" for place in places):
            found: Tensor = function(tensor, *args, **kwargs)
            return found
        like = [value for value in args if isinstance(value, Tensor)]
        dtypes = [value for value in (*args, kwargs.get("dtype")) if isinstance(value, torch.dtype)]
        dtype = [*dtypes, *(other.dtype for other in like), tensor.dtype][0]
        to_card = [*(place.type == "cuda" for place in places), *map(is_marked, like), is_marked(tensor)][0]
        if to_card is is_marked(tensor) and dtype == tensor.dtype and not kwargs.get("copy"):
            return tensor
        if to_card is not is_marked(tensor):
            Graph.wait()
        moved: Tensor = Moved.apply(tensor, to_card, dtype)
        return moved


class Graph:
    """As `torch.cuda.CUDAGraph`. Captured operations are done as well: whoever captures takes that back."""

    captured: "Graph | None" = None
    sync_debug_mode: Any = "default"

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        with torch._C.DisableTorchFunction(), no_dispatch(), torch.no_grad():
            for kernel, args, kwargs, out in self.operations:
                for new, old in zip(tensors_in(kernel(*args, **kwargs)), tensors_in(out), strict=True):
                    if new.data_ptr() != old.data_ptr():
                        old.detach().copy_(new)

    @classmethod
    def wait(cls) -> None:
        if cls.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        if cls.sync_debug_mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    @classmethod
    def set_sync_debug_mode(cls, mode: Any) -> None:
        cls.sync_debug_mode = mode


class Capture:
    """As `torch.cuda.graph`."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __enter__(self) -> None:
        Graph.captured = self.graph

    def __exit__(self, *_: Any) -> None:
        Graph.captured = None


class Stream:
    def wait_stream(self, _other: "Stream") -> None: ...

    def is_capturing(self) -> bool:
        return Graph.captured is not None


class AutocastOfHost(torch.autocast):
    def __init__(self, _device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)


@contextlib.contextmanager
def within(_stream: Stream) -> Iterator[None]:
    yield


def ignore(*_: Any) -> None: ...


def emulate() -> None:
    """From now on torch has a card, in this thread and those that are started."""
    properties = SimpleNamespace(name="emulated", total_memory=TOTAL_BYTES, major=9, minor=0)
    instead: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": ignore,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": ignore,
        "get_device_properties": lambda _device=None: properties,
        "mem_get_info": lambda _device=None: (TOTAL_BYTES // 2, TOTAL_BYTES),
        "empty_cache": ignore,
        "synchronize": ignore,
        "get_rng_state": lambda *_: torch.get_rng_state(),  # there is one generator
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "manual_seed": ignore,
        "manual_seed_all": ignore,
        "is_bf16_supported": lambda: True,
        "Stream": Stream,
        "stream": within,
        "current_stream": Stream,
        "CUDAGraph": Graph,
        "graph": Capture,
        "is_current_stream_capturing": lambda: Graph.captured is not None,
        "get_sync_debug_mode": lambda: Graph.sync_debug_mode,
        "set_sync_debug_mode": Graph.set_sync_debug_mode,
    }
    for name, value in instead.items():
        setattr(torch.cuda, name, value)
    setattr(torch.accelerator, "current_accelerator", lambda check_available=False: CARD)  # noqa: B010
    setattr(torch.accelerator, "current_stream", Stream)  # noqa: B010
    setattr(torch, "autocast", AutocastOfHost)  # noqa: B010
    setattr(Tensor, "record_stream", ignore)  # noqa: B010
    begin: Callable[[Thread], None] = vars(Thread)["_bootstrap_inner"]

    def begin_with_card(thread: Thread) -> None:
        with Kernels(), Functions():
            begin(thread)

    setattr(Thread, "_bootstrap_inner", begin_with_card)  # noqa: B010
    Kernels().__enter__()
    Functions().__enter__()


def pytest_configure(config: pytest.Config) -> None:
    emulate()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("real_card"):
            item.add_marker(pytest.mark.skip(reason="of a real card alone"))
