"""In which of the namespaces that were named the operator may work. Called by `run`, at its start and with each list.

The operator's rights in a namespace go with it, and come back only when somebody grants them again.
"""

import asyncio
from collections.abc import Iterable
from itertools import compress

from sft_operator.kubernetes.api import ClusterApi


async def open_namespaces(api: ClusterApi, named: tuple[str, ...]) -> tuple[str, ...]:
    """In their order."""
    return tuple(compress(named, await asyncio.gather(*map(api.may_list_jobs_of, named))))


def left_out(namespaces: Iterable[str]) -> str:
    """What is told of those that are not among them."""
    return (
        f"no jobs are run in {', '.join(namespaces)}: the namespace, or the operator's Role in it, is not there; "
        "create the namespace and run helm upgrade, which makes its Role, or leave it out of watchNamespaces "
        "(--namespace)"
    )
