"""The memory of a device that a job asks for, as far as the names in its spec tell."""

from typing import Any

import pytest

from sftjob.compute import ComputeSpec
from sftjob.devices import most_device_bytes

GPU = {"nvidia.com/gpu": 8}
GIB = 1 << 30


@pytest.mark.parametrize(
    ("limits", "labels", "size"),
    [
        (GPU, {}, None),
        (GPU, {"nvidia.com/gpu.product": "Tesla-T4"}, None),
        (GPU, {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, 80 * GIB),
        (GPU, {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"}, 80 * GIB),
        (GPU, {"nvidia.com/gpu.memory": "81559"}, 81_559 * 1024 * 1024),
        (GPU, {"karpenter.k8s.aws/instance-gpu-memory": "24576"}, 24 * GIB),
        (GPU, {"nvidia.com/gpu.memory": "many"}, None),
        # The whole GPU's name may tell more than its slice has: nothing is refused that might fit.
        ({"nvidia.com/mig-1g.5gb": 1}, {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"}, 40 * GIB),
        ({"nvidia.com/mig-3g.40gb": 1}, {}, 40 * GIB),
        # What a user calls a rack or a network says nothing.
        (GPU, {"rack": "7gb", "network": "100gbit"}, None),
    ],
)
def test_a_size_is_known_where_a_name_tells_it(
    limits: dict[str, Any], labels: dict[str, str], size: int | None
) -> None:
    spec = ComputeSpec.model_validate({"resources": {"limits": limits}, "nodeSelector": labels})
    assert most_device_bytes(spec) == size
