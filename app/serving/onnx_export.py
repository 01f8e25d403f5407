"""A model as one ONNX file: features, network and targets, with the tensors that `app.serving.signature` names.

The network and all arithmetic are exported by torch; text, which torch does not have, is looked up by nodes put in
front (ai.onnx.ml LabelEncoder) and behind (Gather). ONNX can't read times, so that they are whole numbers here. Needs
the extra `onnx`, which is imported when it is used.
Shape suffixes: N rows, F encoded numbers, T targets, L classes.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.errors import Unavailable
from app.learning.features import MISSING, NUM_RESERVED_CODES, UNSEEN, Features
from app.learning.model import Model
from app.serving.calendar import MISSING_TIME, calendar_parts
from app.serving.onnx_check import check_predictions, first_measures, not_exportable
from app.serving.signature import MATRIX, PREDICTIONS, PROBABILITIES, flags_are_boolean
from app.specs.table import Column, Signature

MAX_BYTES = 2**31 - 2**20  # of a protobuf message
TIMES = f"microseconds since 1970-01-01T00:00:00 UTC; a missing one is {MISSING_TIME}"
LARGEST = torch.finfo(torch.float64).max
INNER = "inner/"  # before all names that no user sees, so that columns may have any other


def export_onnx(model: Model, name: str) -> bytes:
    """The file, after onnxruntime has given our own predictions with it.

    The model must be nobody else's: its parameters are swapped for symbols while torch looks at it.

    Raises:
        InvalidInput: the model has something that has no form in ONNX, code `not_exportable`.
        Unavailable: the extra is not installed.
    """
    _check_exportable(model)
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise Unavailable(
            f"ONNX export needs {error.name}; install it: pip install 'gradserve[onnx]'", code="extra_missing"
        ) from error
    proto = _exported(model)
    _prefix(proto.graph)
    _add_inputs(onnx, proto.graph, model.features, model.signature)
    _add_outputs(onnx, proto.graph, model.signature)
    proto.producer_name, proto.graph.name = "gradserve", name
    if times := [column.name for column in model.features.columns if column.kind == "datetime"]:
        onnx.helper.set_model_props(proto, {"datetime_inputs": json.dumps(times), "datetime_unit": TIMES})
    if not any(entry.domain == "ai.onnx.ml" for entry in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    onnx.checker.check_model(proto)
    content: bytes = proto.SerializeToString()
    check_predictions(model, content)
    return content


def _check_exportable(model: Model) -> None:
    for column in model.features.columns:
        if column.name in (PREDICTIONS, PROBABILITIES) or column.name.startswith(INNER):
            raise not_exportable(f"{column.name!r} is the name of an output or of a part of the graph")
    if sum(parameter.nbytes for parameter in model.network.parameters()) > MAX_BYTES:
        raise not_exportable("an ONNX file holds at most 2 GiB of weights")


# ---- what torch exports


class _LogSigmoid(nn.Module):
    """What torch exports as log(sigmoid(x)), which is infinite below -104."""

    def forward(self, x: Tensor) -> Tensor:
        return -nn.functional.softplus(-x)


def _make_finite(network: nn.Module) -> None:
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LogSigmoid):
                setattr(parent, name, _LogSigmoid())


class _WholeModel(nn.Module):
    """From columns (float64 or bool, or codes of categories) to predictions: what features and `Model.predict` do."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        features = model.features
        self.network, self.targets = model.network, model.targets
        self.kinds = [column.kind for column in features.columns]
        self.positional = model.signature.positional
        self.standardizes = features.standardizes
        self.impute = features.spec is not None
        places = first_measures(features)
        self.flagged = [places[name] for name in features.flagged]
        self.register_buffer("mean", torch.from_numpy(features.mean.copy()))
        self.register_buffer("std", torch.from_numpy(features.std.copy()))

    def forward(self, *columns: Tensor) -> tuple[Tensor, ...]:
        outputs: Tensor = self.network(self._encode(columns))
        values = self.targets.activate(outputs)
        signature = self.targets.signature
        if signature.task == "regression":
            return (values,)
        if signature.task == "multilabel":
            flags = values >= 0.5
            return (flags if flags_are_boolean(signature) else flags.long()), values
        return values.argmax(1, keepdim=True), values

    def _encode(self, columns: Sequence[Tensor]) -> Tensor:
        if self.positional:
            plain, codes = [columns[0].double()], []
        else:
            given = list(zip(columns, self.kinds, strict=True))
            plain = [
                calendar_parts(column) if kind == "datetime" else column.double()
                for column, kind in given
                if kind != "categorical"
            ]
            codes = [column.float() for column, kind in given if kind == "categorical"]
        parts = []
        if plain:
            measures = torch.cat(plain, 1)
            absent = ~(measures.abs() <= LARGEST)  # `isinf` goes through float32 in ONNX, where much is infinite
            parts.append(self._scaled(measures, absent).float())
            parts += [absent[:, index : index + 1].float() for index in self.flagged]
        return torch.cat([*parts, *codes], 1)

    def _scaled(self, measures: Tensor, absent: Tensor) -> Tensor:
        assert isinstance(self.mean, Tensor)
        assert isinstance(self.std, Tensor)
        if not self.impute:
            return measures
        if self.standardizes:
            return torch.where(absent, 0.0, (measures - self.mean) / self.std)
        return torch.where(absent, self.mean, measures)


def _exported(model: Model) -> Any:
    """The graph, whose inputs are `column_0`, …, and outputs `output_0`, …."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that nobody asked for
    _make_finite(model.network)
    whole = _WholeModel(model).eval()
    width = len(model.signature.inputs)
    examples = (
        (torch.zeros(2, width),)
        if model.signature.positional
        else tuple(torch.zeros(2, 1, dtype=_dtype(column)) for column in model.features.columns)
    )
    rows = torch.export.Dim("rows", min=1)
    num_outputs = 1 if model.signature.task == "regression" else 2
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused kernel that ONNX does not have
    try:
        program = torch.onnx.export(
            whole,
            examples,
            dynamo=True,
            verbose=False,
            dynamic_shapes=(tuple({0: rows} for _ in examples),),
            input_names=[f"column_{place}" for place in range(len(examples))],
            output_names=[f"output_{place}" for place in range(num_outputs)],
        )
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError) as error:
        raise not_exportable(str(error).strip().splitlines()[0]) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    assert program is not None
    return program.model_proto


def _dtype(column: Column) -> torch.dtype:
    types = {"categorical": torch.int64, "datetime": torch.int64, "boolean": torch.bool}
    return types.get(column.kind, torch.float64)


# ---- what is put around it


def _add_inputs(onnx: Any, graph: Any, features: Features, signature: Signature) -> None:
    """Inputs under the columns' own names; text is looked up, "" being a missing value where it is no category."""
    helper, types = onnx.helper, onnx.TensorProto
    inner = [value.name for value in graph.input]
    kinds: list[str] = ["matrix"] if signature.positional else [column.kind for column in features.columns]
    names = [MATRIX] if signature.positional else [column.name for column in features.columns]
    width = len(signature.inputs) if signature.positional else 1
    elements = {
        "matrix": types.FLOAT,
        "boolean": types.BOOL,
        "categorical": types.STRING,
        "datetime": types.INT64,
    }
    nodes, inputs = [], []
    for name, kind, inside in zip(names, kinds, inner, strict=True):
        element, said = elements.get(kind, types.DOUBLE), TIMES if kind == "datetime" else ""
        inputs.append(helper.make_tensor_value_info(name, element, ["rows", width], said))
        if kind == "categorical":
            codes = {word: place + NUM_RESERVED_CODES for place, word in enumerate(features.vocabularies[name])}
            codes.setdefault("", MISSING)
            nodes.append(
                helper.make_node(
                    "LabelEncoder",
                    [name],
                    [inside],
                    domain="ai.onnx.ml",
                    keys_strings=list(codes),
                    values_int64s=list(codes.values()),
                    default_int64=UNSEEN,
                )
            )
        else:
            nodes.append(helper.make_node("Identity", [name], [inside]))
    _replace(graph.input, inputs)
    _replace(graph.node, [*nodes, *graph.node])


def _add_outputs(onnx: Any, graph: Any, signature: Signature) -> None:
    """`predictions`, as labels where they are, and `probabilities`."""
    helper, types = onnx.helper, onnx.TensorProto
    outputs = [helper.make_tensor_value_info(PREDICTIONS, types.DOUBLE, ["rows", len(signature.targets)])]
    nodes = [helper.make_node("Identity", [f"{INNER}output_0"], [PREDICTIONS])]
    if signature.task != "regression":
        assert signature.classes is not None
        num_classes = len(signature.classes)
        labels = np.array(signature.classes)
        element = types.STRING if labels.dtype.kind == "U" else helper.np_dtype_to_tensor_dtype(labels.dtype)
        if signature.task == "multilabel":
            element = types.BOOL if flags_are_boolean(signature) else types.INT64
        else:
            graph.initializer.append(helper.make_tensor(f"{INNER}labels", element, [num_classes], labels.tolist()))
            nodes = [helper.make_node("Gather", [f"{INNER}labels", f"{INNER}output_0"], [PREDICTIONS])]
        nodes.append(helper.make_node("Identity", [f"{INNER}output_1"], [PROBABILITIES]))
        width = num_classes if signature.task == "multilabel" else 1
        outputs = [
            helper.make_tensor_value_info(PREDICTIONS, element, ["rows", width]),
            helper.make_tensor_value_info(PROBABILITIES, types.DOUBLE, ["rows", num_classes]),
        ]
    graph.node.extend(nodes)
    _replace(graph.output, outputs)


def _replace(field: Any, items: Sequence[Any]) -> None:
    """The items of a repeated protobuf field."""
    kept = list(items)
    del field[:]
    field.extend(kept)


def _prefix(graph: Any) -> None:
    """Put `INNER` before every name of a graph and of those within it."""
    for node in graph.node:
        node.name = INNER + node.name
        for names in (node.input, node.output):
            names[:] = [INNER + name if name else "" for name in names]  # an empty one is an input left out
        for attribute in node.attribute:
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                _prefix(inner)
    for values in (graph.input, graph.output, graph.initializer):
        for value in values:
            value.name = INNER + value.name
    del graph.value_info[:]
