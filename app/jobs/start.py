"""The version that a run goes on from: what is taken of it, and whether it can be compared with."""

from dataclasses import dataclass, replace

from torch import Tensor

from app.errors import CorruptVersion, NotFound
from app.learning.model import Model
from app.learning.prepare import Fitted
from app.specs.outputs import Learnt, has_seen_held_out, new_output_layer, same_target
from app.specs.table import Signature
from app.specs.training import TrainingSpec, WarmStart
from app.storage.lineage import lineage
from app.storage.models import ModelStore
from app.storage.version import Version


@dataclass(frozen=True)
class Start:
    """Of a published version, or one that was deleted since the job was submitted."""

    model: Model
    store: ModelStore

    @classmethod
    def of(cls, store: ModelStore, begun: WarmStart) -> "Start":
        """The version, as it is published or as it is kept for the job.

        Raises:
            NotFound, CorruptVersion: it is neither.
        """
        assert begun.version is not None
        try:
            return cls(_load(store.get(begun.model, begun.version)), store)
        except (NotFound, CorruptVersion):
            deleted = store.deleted(begun.model, begun.version)
            if deleted is None:
                raise
            return cls(_load(deleted), store)

    @property
    def learnt(self) -> Learnt:
        return Learnt(self.model.spec, self.model.signature, self.model.targets.loss)

    def weights(self, spec: TrainingSpec) -> dict[str, Tensor]:
        """All but those of the output layer, where that is a new one."""
        new = new_output_layer(self.learnt, spec)
        weights = self.model.network.state_dict()
        return {name: value for name, value in weights.items() if new is None or not name.startswith(f"{new}.")}

    def fitted(self, spec: TrainingSpec, signature: Signature) -> Fitted:
        """The version's features, and its targets where they are the same."""
        if not same_target(self.learnt, spec):
            return Fitted(self.model.features, None)
        known = self.model.targets
        signature = signature.model_copy(update={"classes": known.signature.classes})
        return Fitted(self.model.features, replace(known, signature=signature, loss=spec.loss.type))

    def is_comparable(self, spec: TrainingSpec) -> bool:
        """Whether it learnt the same, and the validation rows are as new to it as to the run's own model."""
        is_same = same_target(self.learnt, spec) and new_output_layer(self.learnt, spec) is None
        before = lineage(self.store, self.learnt.spec.warm_start)
        return is_same and not any(has_seen_held_out(one, spec) for one in (self.learnt, *before))


def _load(version: Version) -> Model:
    return Model.load(version.load_tensors(), version.config)
