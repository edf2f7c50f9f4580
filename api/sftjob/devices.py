"""How much memory a device has that a job asks for, as far as the names in its spec tell.

Called by the pre-flight, which runs where no such device is.
"""

import re

from sftjob.compute import ComputeSpec

_PRODUCTS = ("nvidia.com/gpu.product", "cloud.google.com/gke-accelerator")
"""Labels of nodes with the name of their devices, of which many tell a size: `NVIDIA-H100-80GB-HBM3`."""
_MEBIBYTES = ("nvidia.com/gpu.memory", "karpenter.k8s.aws/instance-gpu-memory")
"""Labels of nodes with the size itself."""
_SIZE = re.compile(r"(?<!\d)(\d+)gb(?![a-z0-9])", re.IGNORECASE)


def most_device_bytes(compute: ComputeSpec) -> int | None:
    """An upper bound: what is sold as 80 GB has less than 80 GiB. None where no name tells a size."""
    labels = compute.node_selector
    told = [int(labels[label]) << 20 for label in _MEBIBYTES if labels.get(label, "").isdecimal()]
    # A slice of a GPU tells its own size: nvidia.com/mig-1g.10gb.
    names = [*compute.resources.devices, *(labels[label] for label in _PRODUCTS if label in labels)]
    told += [int(size) << 30 for name in names for size in _SIZE.findall(name)]
    return max(told, default=None)
