"""No code of a file is ever run: the source has nothing that could, and what is planted stays where it is."""

import io
import pickle
import re
from pathlib import Path

import httpx
import pytest
import torch

from tests.api.service import service
from tests.published import numbers_model, publish

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "pickles": r"\b(?:pickle|cPickle|dill|cloudpickle|joblib|shelve|marshal)\b|torch\.(?:load|save|jit\.load)\b"
    r"|allow_pickle|weights_only|read_pickle|_use_new_zipfile",
    "text as code": r"(?<![\w.])(?<!def )(?:eval|exec|compile|__import__)\(|yaml\.\w*load\b|literal_eval",
    "shells": r"shell=True|os\.(?:system|popen)\b|subprocess\.getoutput",
    "archives as they are": r"\bextractall\(|archive\.extract\(|unpack_archive",
    "numpy's own files": r"np\.(?:load|save)\b|numpy\.load\b",
}
MENTIONED = {"app/storage/formats.py": '"a Python pickle"', "app/learning/library.py": "Nothing is pickled"}
CLIENTS = ("app/client/", "app/cli.py", "app/predict_file.py")
FETCHING = r"^\s*(?:import|from) (?:httpx|urllib|requests|aiohttp|http\.client|ftplib|smtplib|fsspec|s3fs)\b"
SOURCES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "app").rglob("*.py"))}


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_the_source_has_nothing_that_runs_what_it_reads(kind: str) -> None:
    assert len(SOURCES) > 100
    found = [
        f"{file}: {line.strip()}"
        for file, text in SOURCES.items()
        for line in text.splitlines()
        if re.search(FORBIDDEN[kind], line) and MENTIONED.get(file, "\0") not in line
    ]
    assert found == []


def test_the_service_fetches_nothing() -> None:
    """`gradserve health` asks, in a process of its own, the service on this machine."""
    found = [file for file, text in SOURCES.items() if re.search(FETCHING, text, re.MULTILINE)]
    assert [file for file in found if not file.startswith(CLIENTS)] == ["app/cli_service.py"]
    (health,) = re.findall(r"^def health\(.*?(?=^\S)", SOURCES["app/cli_service.py"], re.MULTILINE | re.DOTALL)
    assert len(re.findall(FETCHING, SOURCES["app/cli_service.py"], re.MULTILINE)) == 1
    assert re.search(FETCHING, health, re.MULTILINE)


@pytest.mark.parametrize(
    ("kind", "line"),
    [("pickles", "import pickle"), ("pickles", "torch.load(path)"), ("text as code", "eval(text)"),
     ("text as code", "x = exec(code)"), ("shells", "run(command, shell=True)"), ("numpy's own files", "np.load(f)"),
     ("archives as they are", "archive.extractall(folder)")],
)  # fmt: skip
def test_it_would_be_found(kind: str, line: str) -> None:
    assert re.search(FORBIDDEN[kind], line)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.target,)


def pickles(target: Path) -> dict[str, bytes]:
    """As pickle and as torch write them."""
    saved = io.BytesIO()
    torch.save({"weight": Bomb(target)}, saved)
    return {"pickle": pickle.dumps(Bomb(target)), "torch": saved.getvalue()}


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_planted_pickle_is_never_run(tmp_path: Path, kind: str) -> None:
    fired = tmp_path / "fired"
    planted = pickles(fired)[kind]
    pickle.loads(pickles(fired)["pickle"])
    assert fired.exists()  # it is a bomb
    fired.unlink()
    models = tmp_path / "models"
    for name in ("weights", "extra", "fresh"):
        publish(models, name, numbers_model())
    (models / "weights" / "1" / "model.safetensors").write_bytes(planted)
    for file in ("model.pt", "pytorch_model.bin", "model.pkl", "__init__.py", "optimizer.pt"):
        (models / "extra" / "1" / file).write_bytes(planted)
    (models / "extra" / "model.pkl").write_bytes(planted)
    (models / "model.pkl").write_bytes(planted)
    (models / "bare").mkdir()
    (models / "bare" / "model.pkl").write_bytes(planted)
    with service(tmp_path) as client:
        assert {model["name"] for model in client.get("/models").json()["data"]} >= {"extra", "fresh"}
        refused = predict(client, "weights")
        assert (refused.status_code, refused.json()["code"]) == (503, "corrupt_version")
        assert predict(client, "extra").json()["predictions"] == predict(client, "fresh").json()["predictions"]
        assert client.get("/models/extra/versions/1/files/model.pt").status_code == 404
        assert client.get("/models/bare").status_code == 404
        assert client.put("/datasets/planted", content=planted).is_client_error
        assert client.post("/models/new/versions", content=planted).is_client_error
    assert not fired.exists()


def predict(client: httpx.Client, model: str) -> httpx.Response:
    return client.post("/predict", json={"model": model, "inputs": [[1.0, 2.0]]})
