"""A version's export in a process of its own, as torch's exporter changes what other threads of its process rely on.

`python -m app.serving.onnx_process FOLDER MODEL VERSION` writes the file to its standard output and ends with status 0,
or writes {"kind", "code", "detail"} of an error of ours and ends with `REFUSED`.
"""

import os
import subprocess
import sys
from pathlib import Path

import orjson

from app import errors
from app.serving.onnx_export import export_onnx
from app.serving.served_model import ServedModel
from app.storage.models import ModelStore

REFUSED = 3


def export_apart(models_dir: Path, name: str, version: str) -> bytes:
    """A published version as an ONNX file.

    Raises:
        InvalidInput: it has no form in ONNX.
        Unavailable: the extra is not installed, or the process was killed.
        NotFound, CorruptVersion
    """
    command = [sys.executable, "-m", "app.serving.onnx_process", str(models_dir.absolute()), name, version]
    ended = subprocess.run(  # noqa: S603 (our own module)
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        start_new_session=True,  # a terminal's Ctrl-C is for the service alone
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)},
    )
    if ended.returncode == REFUSED:
        said = orjson.loads(ended.stdout)
        kind: type[errors.GradserveError] = getattr(errors, said["kind"])
        raise kind(said["detail"], code=said["code"])
    if ended.returncode < 0:
        raise errors.Unavailable(f"the export was killed (signal {-ended.returncode}); memory may have run out")
    if ended.returncode:
        raise RuntimeError(f"the export failed: {ended.stderr.decode(errors='replace')}")
    return ended.stdout


def main(models_dir: str, name: str, version: str) -> None:
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)  # what libraries print is no part of it
        try:
            model = ServedModel.load(ModelStore(Path(models_dir)).get(name, version), "cpu").model
            answer.write(export_onnx(model, f"{name}-{version}"))
        except errors.GradserveError as error:
            answer.write(orjson.dumps({"kind": type(error).__name__, "code": error.code, "detail": error.detail}))
            answer.flush()
            os._exit(REFUSED)


if __name__ == "__main__":
    main(*sys.argv[1:])
