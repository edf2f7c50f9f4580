"""The figures of `benchmarks.operator` as a picture: who had answered how many objects when, how soon a status came.

Called by it for `--chart`.
"""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def draw(report: dict[str, Any], file: Path) -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    turns = report["turns"]
    for name, label, colour in (
        ("burst", f"sftjob: children of {len(turns['burst']['answered']) + 1} SFTJobs", "tab:blue"),
        ("first", "sftjob: children, the earlier turn", "tab:cyan"),
        ("lifted", "training-operator: pods, its limits lifted", "tab:orange"),
        ("released", "training-operator: pods, as released", "tab:red"),
    ):
        answered = turns[name]["answered"]
        left.plot(answered, range(1, len(answered) + 1), color=colour, label=label)
    created = turns["burst"]["created"]
    left.plot(created, range(1, len(created) + 1), color="grey", linestyle=":", label="the SFTJobs themselves")
    left.set(xlabel="seconds since the first was applied", ylabel="objects answered", ylim=(0, None), xlim=(0, None))
    left.legend(fontsize=8)
    latencies = report["pod_to_status_seconds"]
    right.plot(latencies, [100 * (index + 1) / len(latencies) for index in range(len(latencies))], color="tab:blue")
    right.set(
        xlabel="seconds from a pod's change to the SFTJob's phase",
        ylabel="% of changes",
        title=f"beside {report['finished']:,} finished jobs",
        xlim=(0, None),
        ylim=(0, 101),
    )
    figure.savefig(file, dpi=110)
