"""The Open Inference Protocol v2, which `tritonclient.http` speaks: the server and its models.

What is asked of them is in `app.api.v2_infer`, what is loaded in `app.api.v2_repository`. Errors have an `error`
besides a problem's members. https://github.com/kserve/open-inference-protocol, with those of Triton's extensions that
`EXTENSIONS` lists.
"""

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, Field

from app import __version__
from app.api import operations
from app.api.auth import require
from app.api.services import Counted, Deps, Services
from app.errors import Conflict
from app.serving.signature import TensorType, input_types, output_types
from app.serving.statistics import facts_of, last_inference_of, triton_statistics
from app.specs.base import Name
from app.specs.table import Signature

router = APIRouter(prefix="/v2", tags=["open inference protocol"])
read = [Depends(require("read"))]

ModelName = Annotated[Name, Path(examples=["line"])]
MAX_SELECTOR = 64
Selector = Annotated[
    str, Field(min_length=1, max_length=MAX_SELECTOR, description="a number or an alias; absent: the newest")
]

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "statistics",
)
PLATFORM = "pytorch_safetensors"


class ServerMetadata(BaseModel):
    name: str = "gradserve"
    version: str = __version__
    extensions: tuple[str, ...] = EXTENSIONS


class TensorMetadata(BaseModel):
    """`shape` has -1 for the number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str = PLATFORM
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


# ---- the server


@router.get("", summary="The server", dependencies=read)
async def server_metadata() -> ServerMetadata:
    return ServerMetadata()


@router.get("/health/live", summary="The process is alive")
async def server_live() -> dict[str, bool]:
    return {"live": True}


@router.get("/health/ready", summary="Ready to predict")
def server_ready(deps: Deps) -> dict[str, bool]:
    operations.readyz(deps)
    return {"ready": True}


# ---- models


@router.get("/models/stats", summary="How all models were used", dependencies=read, responses={404: {}})
@router.get("/models/{name}/stats", summary="How a model was used", dependencies=read)
@router.get("/models/{name}/versions/{version}/stats", summary="How a version was used", dependencies=read)
async def statistics(
    deps: Deps, counted: Counted, name: ModelName | None = None, version: Selector | None = None
) -> dict[str, Any]:
    """By whatever protocol, in all processes, since the service started; times in nanoseconds."""
    chosen = await to_thread.run_sync(_chosen, deps, name, version)
    facts, last = facts_of(counted.counts), last_inference_of(counted.gauges)
    return {"model_stats": [triton_statistics(*key, facts.get(key, {}), last.get(key, 0)) for key in chosen]}


def _chosen(deps: Services, name: str | None, version: str | None) -> list[tuple[str, str]]:
    if name is not None and version is not None:
        return [(name, deps.models.resolve(name, version))]
    return deps.models.all_versions() if name is None else [(name, number) for number in deps.models.versions(name)]


@router.get("/models/{name}", summary="A model's tensors", dependencies=read)
@router.get("/models/{name}/versions/{version}", summary="A version's tensors", dependencies=read)
def model_metadata(name: ModelName, deps: Deps, version: Selector | None = None) -> ModelMetadata:
    signature = _signature(deps, name, version)
    return ModelMetadata(
        name=name,
        versions=deps.models.versions(name),
        inputs=[_metadata(tensor) for tensor in input_types(signature)],
        outputs=[_metadata(tensor) for tensor in output_types(signature)],
    )


def _signature(deps: Services, name: str, version: str | None) -> Signature:
    found = deps.models.newest(name) if version is None else deps.models.get(name, version)
    return Signature.model_validate(found.config["signature"])


def _metadata(tensor: TensorType) -> TensorMetadata:
    return TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=list(tensor.shape))


@router.get("/models/{name}/ready", summary="A model is ready", dependencies=read, responses={409: {}})
@router.get(
    "/models/{name}/versions/{version}/ready", summary="A version is ready", dependencies=read, responses={409: {}}
)
async def model_ready(name: ModelName, deps: Deps, version: Selector | None = None) -> dict[str, Any]:
    """Loads it, so that a yes is one."""
    if deps.models.is_unloaded(name):
        raise Conflict(f"the model {name!r} was unloaded; it loads again at its next use", code="model_unloaded")
    await deps.predictor.load(name, version)
    return {"name": name, "ready": True}


@router.get("/models/{name}/config", summary="A model's configuration", dependencies=read)
@router.get("/models/{name}/versions/{version}/config", summary="A version's configuration", dependencies=read)
def model_config(name: ModelName, deps: Deps, version: Selector | None = None) -> dict[str, Any]:
    """As Triton has it. `max_batch_size` is 0: the shapes include the number of rows, which has no limit of its own."""
    signature = _signature(deps, name, version)
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": "pytorch",
        "version_policy": {"latest": {"num_versions": 1}} if version is None else {"specific": {"versions": [version]}},
        "max_batch_size": 0,
        "input": [_config(tensor) for tensor in input_types(signature)],
        "output": [_config(tensor) for tensor in output_types(signature)],
    }


def _config(tensor: TensorType) -> dict[str, Any]:
    datatype = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return {"name": tensor.name, "data_type": f"TYPE_{datatype}", "dims": list(tensor.shape)}
