"""scripts/quickstart --once, as a newcomer runs it, but with folders of its own."""

import os
import subprocess
from pathlib import Path

import httpx
import pytest

from scripts.service import Service, free_port

ROOT = Path(__file__).parents[2]


def quickstart(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    folders = {"GRADSERVE_MODELS_DIR": str(folder / "models"), "GRADSERVE_DATA_DIR": str(folder / "data")}
    command = [ROOT / "scripts" / "quickstart", "--once"]
    return subprocess.run(
        command, env=os.environ | folders | environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_once_goes_all_the_way(tmp_path: Path) -> None:
    port = free_port()
    run = quickstart(tmp_path, PORT=str(port))
    assert run.returncode == 0, run.stdout + run.stderr
    for bird in ("Adelie", "Gentoo", "Chinstrap"):
        assert bird in run.stdout
    assert f"http://127.0.0.1:{port}/docs" in run.stdout
    assert f"http://127.0.0.1:{port}/models/penguins/versions/1" in run.stdout
    assert "val_accuracy" in run.stdout
    assert "train_loss" in run.stdout
    assert (tmp_path / "models" / "penguins" / "1" / "model.safetensors").exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/healthz")


def test_fails_where_a_step_fails(service: Service, tmp_path: Path) -> None:
    run = quickstart(tmp_path, PORT=str(service.port))
    assert run.returncode == 1
    assert f"port {service.port} is taken" in run.stdout
