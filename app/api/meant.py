"""What was perhaps meant by the name of a field or type that there is not."""

from collections.abc import Collection, Sequence

from app.specs.sentences import nearest

ALIKE = 0.7  # of two names of which one is surely the other, misspelt
INFERRED = "it is inferred; leave it out"
OF_LAYERS = {
    **dict.fromkeys(("in_channels", "in_features", "input_size", "input_dim", "embed_dim"), INFERRED),
    **dict.fromkeys(("num_features", "normalized_shape"), INFERRED),
    "embedding_dim": "did you mean 'embedding_features'?",
    "batch_first": "it is always so; leave it out",
    "return_sequences": 'gru and lstm have "output": "sequence" for that',
    "rate": "dropout has 'p' for that",
    "dense": "did you mean 'linear'?",
    "softmax": "the loss 'cross_entropy' takes logits; leave it out",
    "rnn": "did you mean 'gru' or 'lstm'?",
    "sequential": "layers follow one another in the 'layers' of a 'residual' and in the 'branches' of a 'parallel'",
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d"), "did you mean 'global_avg_pool'?"),
    **dict.fromkeys(("global_average_pooling1d", "global_average_pooling2d"), "did you mean 'global_avg_pool'?"),
    "conv_transpose2d": "nor is there one of its kind",
}
"""Names that other libraries have in layers, and what to do with them here."""
_ROWS = "rows are 'records', or 'inputs' and 'targets', or a 'dataset'"
OF_DATA = {
    **dict.fromkeys(("rows", "columns", "instances", "table", "dataframe", "csv", "file", "path", "url", "x"), _ROWS),
    **dict.fromkeys(("y", "label", "labels", "response", "response_column"), "did you mean 'target', or 'targets'?"),
    **dict.fromkeys(("weights", "weights_column"), "did you mean 'sample_weight'?"),
}
"""The same of the data of a run."""


def _squeezed(name: str) -> str:
    return name.replace("_", "").lower()


_OF_LAYERS = {_squeezed(name): words for name, words in OF_LAYERS.items()}  # also as GlobalAveragePooling2D


def no_such_field(
    name: str,
    known: Sequence[str],
    given: Collection[str],
    missing: Sequence[str],
    below: dict[str, list[str]],
    *,
    in_layer: bool,
) -> str:
    """The sentence for a field that there is not.

    `known` are the fields of the object, of which it has those that are `given` and lacks those that are `missing`;
    `below` is where the fields within those are. What was meant may be any that is not given.
    """
    said = "there is no such field; "
    words = _OF_LAYERS.get(_squeezed(name)) if in_layer else OF_DATA.get(name.lower()) if "records" in known else None
    if words and not (words == INFERRED and "num_embeddings" in known):  # what goes into an embedding is no width
        return said + words
    free = [field for field in known if field not in given]
    if name not in below and nearest(name, (*free, *below), ALIKE) is None:
        likely = missing if len(missing) == 1 else (nearest(name, missing),)
        if likely[0] is not None:
            return f"{said}did you mean {likely[0]!r}?"
    if name not in below and nearest(name, free) is None:
        name = nearest(name, below) or name
    places = " or ".join(map(repr, below.get(name, ())))
    return said + (f"did you mean {places}?" if places else instead(name, known, free))


def unknown_type(tag: str, known: Sequence[str], *, in_layer: bool) -> str:
    words = _OF_LAYERS.get(_squeezed(tag)) if in_layer else None
    return f"there is no type {tag!r}; {words or instead(tag, known)}"


def instead(name: str, known: Sequence[str], likely: Sequence[str] | None = None) -> str:
    """What was perhaps meant, one of the `likely` or of all that are `known`, or else all that there is."""
    near = nearest(name, known if likely is None else likely)
    return f"there are {', '.join(map(repr, known))}" if near is None else f"did you mean {near!r}?"
