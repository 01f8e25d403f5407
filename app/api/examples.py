"""Request bodies that run as they stand: shown by /docs, and run by a test."""

from typing import Any

SEED: dict[str, Any] = {
    "model": "line",
    "data": {
        "inputs": [[1], [2], [3], [4], [5], [6], [7], [8], [9], [10]],
        "targets": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
    },
    "network": {"hidden_features": []},
    "init": {"weight": "normal", "bias": "zeros"},
    "loss": {"type": "mse"},
    "optimizer": {"type": "sgd", "learning_rate": 0.01},
    "descent": {"variant": "full_batch"},
    "stop": {"max_steps": 1000},
    "validation": None,
    "features": None,
}
RECORDS: dict[str, Any] = {
    "model": "birds",
    "data": {
        "records": [
            {"bill_length_mm": 39.1, "sex": "male", "species": "Adelie"},
            {"bill_length_mm": 38.9, "sex": "female", "species": "Adelie"},
            {"bill_length_mm": 46.1, "sex": "female", "species": "Gentoo"},
            {"bill_length_mm": 50.0, "sex": None, "species": "Gentoo"},
        ],
        "target": "species",
    },
    "stop": {"max_epochs": 50},
}

IMAGES: dict[str, Any] = {
    "model": "bars",
    "data": {
        "inputs": [
            [1, 1, 1, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 1, 1, 1, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 1, 1, 1],
            [1, 0, 0, 1, 0, 0, 1, 0, 0],
            [0, 1, 0, 0, 1, 0, 0, 1, 0],
            [0, 0, 1, 0, 0, 1, 0, 0, 1],
        ],
        "targets": ["across", "across", "across", "down", "down", "down"],
    },
    "network": {
        "input_shape": [1, 3, 3],
        "layers": [{"type": "conv2d", "out_channels": 16}, {"type": "relu"}, {"type": "global_max_pool"}],
    },
    "optimizer": {"type": "adamw", "learning_rate": 0.01},
    "validation": None,
}
SEQUENCES: dict[str, Any] = {
    "model": "reviews",
    "data": {
        "inputs": [[4, 7, 2, 0], [7, 6, 0, 0], [2, 7, 3, 5], [4, 8, 2, 0], [8, 6, 0, 0], [2, 8, 3, 5]],
        "targets": ["good", "good", "good", "bad", "bad", "bad"],
    },
    "network": {
        "layers": [
            {"type": "embedding", "num_embeddings": 10, "embedding_features": 8},
            {"type": "mean_over_sequence"},
        ]
    },
    "optimizer": {"type": "adamw", "learning_rate": 0.1},
    "validation": None,
}

TRAIN: dict[str, Any] = {
    "line": {"summary": "Ten points and a straight line", "value": SEED},
    "records": {"summary": "Rows as objects, with a gap", "value": RECORDS},
    "images": {"summary": "Images of 3 × 3, in rows of 9 numbers", "value": IMAGES},
    "sequences": {"summary": "Words by their numbers; 0 fills up what is shorter", "value": SEQUENCES},
}
PREDICT: dict[str, Any] = {
    "rows": {"summary": "Rows of numbers", "value": {"model": "line", "inputs": [[4], [11]]}},
    "records": {
        "summary": "Rows by column name",
        "value": {"model": "birds", "inputs": [{"sex": "male", "bill_length_mm": 40.2}, {"bill_length_mm": 47.5}]},
    },
}
EVALUATE: dict[str, Any] = {
    "rows": {
        "summary": "Rows of numbers",
        "value": {"model": "line", "data": {"inputs": [[3], [12]], "targets": [3, 12]}},
    }
}
ALIAS: dict[str, Any] = {
    "champion": {"summary": "The version to use", "value": {"version": "1"}},
    "canary": {
        "summary": "A tenth of the requests for another version",
        "value": {"version": "1", "canary": {"version": "2", "percent": 10}},
    },
    "shadow": {
        "summary": "Another version that is only compared",
        "value": {"version": "1", "shadow": {"version": "2"}},
    },
}
INFER: dict[str, Any] = {
    "rows": {
        "summary": "Rows of numbers",
        "value": {"inputs": [{"name": "inputs", "shape": [2, 1], "datatype": "FP32", "data": [4, 11]}]},
    }
}
INVOCATIONS: dict[str, Any] = {
    "split": {"summary": "A frame, split", "value": {"dataframe_split": {"columns": ["x"], "data": [[4], [11]]}}},
    "records": {"summary": "A frame's rows", "value": {"dataframe_records": [{"x": 4}, {"x": 11}]}},
    "instances": {"summary": "Rows, as TensorFlow Serving has them", "value": {"instances": [[4], [11]]}},
    "inputs": {"summary": "Columns, as TensorFlow Serving has them", "value": {"inputs": {"x": [4, 11]}}},
}
