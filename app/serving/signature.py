"""A model's inputs and outputs as named tensors: what the Open Inference Protocol and ONNX files call them.

A model of plain rows of numbers has one input, `inputs`; one with columns has an input for each.
Shape suffixes: N rows, L classes or labels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from app.specs.table import Label, Signature

MATRIX = "inputs"
PREDICTIONS, PROBABILITIES = "predictions", "probabilities"
DATATYPES = {"numeric": "FP64", "boolean": "BOOL", "categorical": "BYTES", "datetime": "BYTES"}


class TensorType(NamedTuple):
    """`shape` has -1 for the number of rows."""

    name: str
    datatype: str
    shape: tuple[int, int]


def input_types(signature: Signature) -> list[TensorType]:
    if signature.positional:
        return [TensorType(MATRIX, "FP32", (-1, len(signature.inputs)))]
    return [TensorType(column.name, DATATYPES[column.kind], (-1, 1)) for column in signature.inputs]


def takes_matrix(signature: Signature) -> bool:
    """Whether all columns may come as the one tensor `inputs`: they are numbers, and none of them has that name."""
    return signature.positional or all(
        column.kind in ("numeric", "boolean") and column.name != MATRIX for column in signature.inputs
    )


def output_types(signature: Signature) -> list[TensorType]:
    if signature.task == "regression":
        return [TensorType(PREDICTIONS, "FP64", (-1, len(signature.targets)))]
    assert signature.classes is not None
    num_classes = len(signature.classes)
    probabilities = TensorType(PROBABILITIES, "FP64", (-1, num_classes))
    if signature.task == "multilabel":
        datatype = "BOOL" if flags_are_boolean(signature) else "INT64"
        return [TensorType(PREDICTIONS, datatype, (-1, num_classes)), probabilities]
    return [TensorType(PREDICTIONS, label_datatype(signature.classes), (-1, 1)), probabilities]


def label_datatype(classes: Sequence[Label]) -> str:
    """The datatype of labels, all of which have one type; numbers may be mixed."""
    types = set(map(type, classes))
    if types == {bool}:
        return "BOOL"
    if types == {int}:
        return "INT64"
    return "FP64" if types <= {int, float} else "BYTES"


def unknown_rows(values_NL: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """Places of rows that have no prediction: a value is no number, as where an input is too large for float32."""
    return np.flatnonzero(~np.isfinite(values_NL).all(axis=1))


def flags_are_boolean(signature: Signature) -> bool:
    """Whether a multilabel model's flags were all given as booleans; otherwise some were 0 and 1."""
    return all(column.kind == "boolean" for column in signature.targets)


def flags_of(signature: Signature, probabilities_NL: NDArray[np.floating[Any]]) -> list[NDArray[Any]]:
    """Of each label of a multilabel model whether it applies, `[N]`: a boolean, or 0 or 1 where it was given so."""
    columns = zip(signature.targets, probabilities_NL.T, strict=True)
    return [(values_N >= 0.5).astype(bool if target.kind == "boolean" else np.int64) for target, values_N in columns]


def labels_of(signature: Signature, probabilities_NL: Tensor) -> NDArray[Any] | list[str]:
    """The elements of a classifier's `predictions`: labels of the likeliest classes, or flags of a multilabel model.

    Text of a row that has no prediction is empty; other datatypes have nothing to say it with.
    """
    if signature.task == "multilabel":
        return np.stack(flags_of(signature, probabilities_NL.numpy()), axis=1).ravel()
    assert signature.classes is not None
    codes = probabilities_NL.argmax(1)
    if label_datatype(signature.classes) == "BYTES":
        words = [str(signature.classes[code]) for code in codes.tolist()]
        for row in unknown_rows(probabilities_NL.numpy()):
            words[row] = ""
        return words
    found: NDArray[Any] = np.array(signature.classes)[codes.numpy()]
    return found
