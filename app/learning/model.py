"""A trained model: features, network and targets that belong together, and their form on disk."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from app.learning.evaluate import forward_all
from app.learning.features import Features
from app.learning.modules import WholeNumbers
from app.learning.network import build_network
from app.learning.targets import Targets
from app.specs.network import LayeredNetwork
from app.specs.table import Signature
from app.specs.training import TrainingSpec

FORMAT_VERSION = 2  # in 1, weights could have other names: see `_current`
WEIGHTS = "network."


@dataclass
class Model:
    spec: TrainingSpec
    features: Features
    targets: Targets
    network: nn.Module

    def __post_init__(self) -> None:
        embeddings = (module for module in self.network.modules() if isinstance(module, WholeNumbers))
        self.features.num_places = min((module.num_embeddings for module in embeddings), default=None)

    @property
    def signature(self) -> Signature:
        return self.targets.signature

    def predict(self, inputs: Tensor) -> Tensor:
        """Values `[N, T]` in the target's units, or probabilities `[N, L]`, of rows `[N, F]`; float64, on the CPU."""
        return self.targets.activate(forward_all(self.network, inputs, device=next(self.network.parameters()).device))

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors by name (weights under `network.`), and the rest as JSON."""
        feature_tensors, features = self.features.export()
        target_tensors, targets = self.targets.export()
        weights = {WEIGHTS + name: value.detach().cpu() for name, value in self.network.state_dict().items()}
        config = {
            "format_version": FORMAT_VERSION,
            "signature": self.signature.model_dump(mode="json"),
            "features": features,
            "targets": targets,
            "spec": self.spec.model_dump(mode="json"),
            "num_parameters": sum(parameter.numel() for parameter in self.network.parameters()),
        }
        return {**weights, **feature_tensors, **target_tensors}, config

    @classmethod
    def load(cls, tensors: dict[str, Tensor], config: dict[str, Any]) -> "Model":
        """The model of `export`, in this format or an older one. Its parameters are the given tensors, not copies."""
        spec = TrainingSpec.model_validate(config["spec"])
        signature = Signature.model_validate(config["signature"])
        features = Features.load(tensors, config["features"])
        targets = Targets.load(tensors, config["targets"], signature)
        network = assemble(spec, features, targets.num_outputs)
        weights = {
            _current(name.removeprefix(WEIGHTS)): value for name, value in tensors.items() if name.startswith(WEIGHTS)
        }
        network.load_state_dict(weights, assign=True)
        return cls(spec, features, targets, network.eval().requires_grad_(False))


def assemble(spec: TrainingSpec, features: Features, num_outputs: int) -> nn.Sequential:
    """The network of a resolved spec over fitted features, on the meta device.

    Raises:
        ShapeMismatch: naming the layer that does not fit.
    """
    assert isinstance(spec.network, LayeredNetwork)
    return build_network(spec.network, features.front(), features.num_inputs, num_outputs)


def _current(name: str) -> str:
    """A weight's name as it is now. In format 1 it could begin with a number: 0 for the input, 1 for layer 0."""
    part, _, rest = name.partition(".")
    if not part.isdecimal():
        return name
    return f"layers.{int(part) - 1}.{rest}" if int(part) else f"input.{rest}"
