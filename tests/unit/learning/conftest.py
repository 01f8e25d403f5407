import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tensors here are so small that a second thread would only be waited for."""
    torch.set_num_threads(1)
