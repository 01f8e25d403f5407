"""What a person asks of a model, by task (torchmetrics does the counting)."""

from collections.abc import Callable

import torch
from torch import Tensor

from app.specs.table import Task

MIN_ROWS_FOR_R2 = 2


def _regression(values: Tensor, targets: Tensor) -> dict[str, float]:
    from torchmetrics.functional import regression

    values, targets = values.double(), targets.double()
    metrics = {
        "mae": regression.mean_absolute_error(values, targets).item(),
        "rmse": regression.mean_squared_error(values, targets, squared=False).item(),
    }
    if len(targets) >= MIN_ROWS_FOR_R2 and bool((targets.var(0) > 0).all()):
        metrics["r2"] = regression.r2_score(values, targets, multioutput="uniform_average").item()
    return metrics


def _classes(probabilities: Tensor, codes: Tensor) -> dict[str, float]:
    from torchmetrics.functional import classification

    num_classes = probabilities.shape[1]
    best = probabilities.argmax(1)
    metrics = {"accuracy": (best == codes).double().mean().item()}
    counts = classification.multiclass_stat_scores(best, codes, num_classes, average=None)
    metrics["f1_macro"] = _macro_f1(counts)
    if num_classes == 2 and 0 < int(codes.sum()) < len(codes):
        metrics["roc_auc"] = classification.binary_auroc(probabilities[:, 1].float(), codes).item()
    return metrics


def _macro_f1(counts: Tensor) -> float:
    """The mean F1 over the classes that occur or are predicted; `counts` are `[L, (tp, fp, tn, fn, support)]`."""
    tp, fp, fn = counts[:, 0].double(), counts[:, 1].double(), counts[:, 3].double()
    occurs = (tp + fp + fn) > 0
    return (2 * tp[occurs] / (2 * tp + fp + fn)[occurs]).mean().item()


def _labels(probabilities: Tensor, flags: Tensor) -> dict[str, float]:
    from torchmetrics.functional import classification

    flags = flags.long()
    counts = classification.multilabel_stat_scores(probabilities.float(), flags, flags.shape[1], average=None)
    exact = ((probabilities >= 0.5).long() == flags).all(1).double().mean().item()
    accuracy = ((probabilities >= 0.5).long() == flags).double().mean().item()
    return {"accuracy": accuracy, "exact_match": exact, "f1_macro": _macro_f1(counts)}


METRICS: dict[Task, Callable[[Tensor, Tensor], dict[str, float]]] = {
    "regression": _regression,
    "binary": _classes,
    "multiclass": _classes,
    "multilabel": _labels,
}


def measure(task: Task, predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """The task's metrics.

    Args:
        predicted: values `[N, T]` in the target's units, or probabilities `[N, L]`.
        truth: values `[N, T]`, class numbers `[N]`, or 0/1 flags `[N, L]`.
    """
    if len(truth) == 0:
        return {}
    with torch.no_grad():
        return METRICS[task](predicted.cpu(), truth.cpu())
