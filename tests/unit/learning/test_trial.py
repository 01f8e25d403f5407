"""Steps that are tried out change nothing, also where they fail."""

import pytest
import torch
from torch import nn

from app.learning.trial import changed_by_steps, taken_back


@pytest.mark.parametrize("fails", [False, True])
def test_weights_statistics_and_generator_are_as_they_were(fails: bool) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    try:
        with taken_back(changed_by_steps(network), torch.device("cpu")):
            network(torch.randn(8, 2)).sum().backward()
            torch.optim.SGD(network.parameters(), 0.1).step()
            changed = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
            if fails:
                raise MemoryError
    except MemoryError:
        assert fails
    assert set(changed) >= {"0.weight", "1.running_mean", "1.num_batches_tracked"}
    assert [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])] == []
    assert torch.equal(torch.rand(4), expected)
