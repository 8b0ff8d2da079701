"""What the machine is asked for comes as it should."""

import platform
from pathlib import Path

import torch

from common.runtime.device import concatenate_bytes, device_name, split_bytes


def test_what_is_sent_to_a_gpu_in_one_piece_comes_apart_again():
    tensors = {
        "scores": torch.rand(3),
        "ids": torch.arange(10).view(2, 5),
        "none": torch.zeros(0),
        "place": torch.ones(1),
    }
    row = concatenate_bytes(tensors)
    assert (row.dtype, row.shape) == (torch.uint8, (3 * 4 + 10 * 8 + 4,))
    apart = split_bytes(row, tensors)
    assert apart.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(apart[name], tensor)
        assert apart[name].dtype == tensor.dtype


def test_a_processor_has_its_name_where_the_system_tells_it():
    name = device_name(torch.device("cpu"))
    model, _, threads = name.rpartition(" CPU, ")
    assert threads == f"{torch.get_num_threads()} threads"
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else platform.machine()
    assert model in told or model == platform.machine()
