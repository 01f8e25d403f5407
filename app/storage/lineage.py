"""What a published version has learnt, and the versions before it that its weights come from."""

from collections.abc import Iterator

from app.errors import CorruptVersion, NotFound
from app.specs.outputs import Learnt
from app.specs.table import Signature
from app.specs.training import TrainingSpec, WarmStart
from app.storage.models import ModelStore
from app.storage.version import Version

MAX_VERSIONS = 100  # that are looked at


def learnt_of(version: Version) -> Learnt:
    spec, signature = version.config["spec"], version.config["signature"]
    loss = version.config["targets"]["loss"]
    return Learnt(TrainingSpec.model_validate(spec), Signature.model_validate(signature), loss)


def lineage(store: ModelStore, begun: WarmStart | None) -> Iterator[Learnt]:
    """What the version that a run began with has learnt, then the one that this began with, and so on.

    It ends at a version that is not there any more, or is broken.
    """
    for _ in range(MAX_VERSIONS):
        if begun is None or begun.version is None:
            return
        try:
            learnt = learnt_of(store.get(begun.model, begun.version))
        except (NotFound, CorruptVersion):
            return
        yield learnt
        begun = learnt.spec.warm_start
