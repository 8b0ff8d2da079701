"""Transfer of tensors to a device, and the name of the device."""

import platform
from pathlib import Path

import torch

from common.runtime.device import concatenate_bytes, device_name, split_bytes


def test_tensors_sent_to_a_gpu_in_one_buffer_are_split_again_unchanged():
    tensors = {
        "scores": torch.rand(3),
        "ids": torch.arange(10).view(2, 5),
        "none": torch.zeros(0),
        "place": torch.ones(1),
    }
    buffer = concatenate_bytes(tensors)
    assert (buffer.dtype, buffer.shape) == (torch.uint8, (3 * 4 + 10 * 8 + 4,))
    parts = split_bytes(buffer, tensors)
    assert parts.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(parts[name], tensor)
        assert parts[name].dtype == tensor.dtype


def test_a_processor_has_the_name_that_the_system_gives_it():
    name = device_name(torch.device("cpu"))
    model, _, threads = name.rpartition(" CPU, ")
    assert threads == f"{torch.get_num_threads()} threads"
    system = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else platform.machine()
    assert model in system or model == platform.machine()
