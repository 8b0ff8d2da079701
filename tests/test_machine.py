"""What the machine is asked for comes as it should."""

import torch

from common import machine


def test_what_is_sent_to_a_gpu_in_one_piece_comes_apart_again():
    tensors = {
        "scores": torch.rand(3),
        "ids": torch.arange(10).view(2, 5),
        "none": torch.zeros(0),
        "place": torch.ones(1),
    }
    row = machine.joined(tensors)
    assert (row.dtype, row.shape) == (torch.uint8, (3 * 4 + 10 * 8 + 4,))
    apart = machine.parted(row, tensors)
    assert apart.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(apart[name], tensor)
        assert apart[name].dtype == tensor.dtype
