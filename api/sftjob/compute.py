"""How many processes a job has, and where they run: the section `compute` of its spec, as users write it."""

import re
from typing import Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from sftjob.base import NEW, Declared
from sftjob.compute_rules import (
    ACCELERATORS_ARE_LIMITED,
    ACCELERATORS_ARE_WHOLE,
    KEY_OR_EVERY_TAINT,
    NOT_VALUE_AND_EXISTS,
    NOT_VALUE_AND_SOURCE,
    REQUESTS_FIT_LIMITS,
    SECONDS_UNDER_NO_EXECUTE,
    SECRET_IS_NAMED,
    VALUE_OR_SOURCE,
    VARIABLE_IS_FREE,
    VARIABLE_NAMES_DIFFER,
)
from sftjob.forms import (
    DATA_KEY,
    IMAGE,
    VARIABLE,
    LabelValue,
    ObjectName,
    QualifiedName,
    Quantity,
)
from sftjob.names import RESERVED_VARIABLES, SECRET_VARIABLES
from sftjob.quantity import exact
from sftjob.rules import rules


class ResourcesSpec(Declared):
    """Of each pod, by resource: `cpu`, `memory`, `nvidia.com/gpu`."""

    model_config = rules(ACCELERATORS_ARE_LIMITED, ACCELERATORS_ARE_WHOLE, REQUESTS_FIT_LIMITS)

    requests: dict[QualifiedName, Quantity] = Field(
        default={}, max_length=16, description="What a node must have free for a pod to go there: at most `limits`."
    )
    limits: dict[QualifiedName, Quantity] = Field(
        default={}, max_length=16, description="What a pod gets at most; GPUs are named here, whole ones."
    )

    @model_validator(mode="after")
    def _can_be_had(self, info: ValidationInfo) -> Self:
        # Jobs from before these rules go on.
        if info.context != NEW:
            return self
        problems = []
        for name, asked in self.requests.items():
            most = self.limits.get(name)
            if _is_accelerator(name):
                if most is None or exact(asked) != exact(most):
                    problems.append(ACCELERATORS_ARE_LIMITED.told(name=name))
            elif most is not None and exact(asked) > exact(most):
                problems.append(REQUESTS_FIT_LIMITS.told(asked=asked, name=name, most=most))
        for name, most in self.limits.items():
            if _is_accelerator(name) and re.search("[.m]", str(most)):
                problems.append(ACCELERATORS_ARE_WHOLE.told(amount=most, name=name))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def devices(self) -> list[str]:
        """Names of what is more than processors, memory and disk: GPUs and other accelerators, and what joins them."""
        amounts = self.requests | self.limits
        return [name for name, amount in amounts.items() if _is_accelerator(name) and str(amount) != "0"]

    @property
    def gpus(self) -> int:
        """Of each pod. They are whole; what is written in another way, as `1k`, is the API server's to understand."""
        amounts = [str(amount) for name, amount in self.limits.items() if name.endswith("/gpu")]
        return sum(int(amount) for amount in amounts if amount.isdecimal())

    def without_devices(self) -> Self:
        return self.model_copy(
            update={
                kind: {name: amount for name, amount in getattr(self, kind).items() if not _is_accelerator(name)}
                for kind in ("requests", "limits")
            }
        )


def _is_accelerator(resource: str) -> bool:
    """Whether Kubernetes hands a resource out in whole pieces: with a prefix, but not its own (extended resources)."""
    return "/" in resource and "kubernetes.io/" not in resource


class TolerationSpec(Declared):
    """As a pod's: lets the job onto nodes with a taint."""

    model_config = rules(KEY_OR_EVERY_TAINT, NOT_VALUE_AND_EXISTS, SECONDS_UNDER_NO_EXECUTE)

    key: QualifiedName | None = Field(default=None, description="Of the taint. Absent, with Exists: every taint.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="Exists: whatever the taint's value.")
    value: LabelValue | None = Field(default=None, description="Of the taint, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Absent: every effect."
    )
    toleration_seconds: int | None = Field(
        default=None, ge=0, description="How long to stay under NoExecute. Absent: for ever."
    )

    @model_validator(mode="after")
    def _fields_together(self, info: ValidationInfo) -> Self:
        # Jobs from before these rules go on.
        if info.context != NEW:
            return self
        problems = []
        if self.key is None and self.operator == "Equal":
            problems.append(KEY_OR_EVERY_TAINT.told())
        if self.value and self.operator == "Exists":
            problems.append(NOT_VALUE_AND_EXISTS.told())
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            problems.append(SECONDS_UNDER_NO_EXECUTE.told())
        if problems:
            raise ValueError("\n".join(problems))
        return self


class SecretReference(Declared):
    """A Secret, by name."""

    name: ObjectName = Field(description="A Secret in the job's namespace.")


class SecretKey(Declared):
    """One entry of a Secret."""

    name: ObjectName = Field(description="A Secret in the job's namespace.")
    key: str = Field(max_length=253, pattern=DATA_KEY, description="The entry's name in the Secret.")


class EnvSource(Declared):
    """Where a variable's value comes from."""

    secret_key_ref: SecretKey


class EnvVar(Declared):
    """For libraries; what sftjob itself does is told by the spec alone."""

    model_config = rules(VALUE_OR_SOURCE, NOT_VALUE_AND_SOURCE, SECRET_IS_NAMED, VARIABLE_IS_FREE)

    name: str = Field(
        max_length=253, pattern=VARIABLE, description=f"Not beginning with {' or '.join(RESERVED_VARIABLES)}."
    )
    value: str | None = Field(default=None, max_length=4096, description="Everyone who may read the job reads it too.")
    value_from: EnvSource | None = Field(
        default=None, description="Instead of `value`. With `sft run`, its own environment must have the variable."
    )

    @model_validator(mode="after")
    def _source(self, info: ValidationInfo) -> Self:
        if (self.value is None) == (self.value_from is None):
            raise ValueError((VALUE_OR_SOURCE if self.value is None else NOT_VALUE_AND_SOURCE).told())
        # Not of a stored job: it may be older than this rule, and run.
        if self.value is not None and self.name in SECRET_VARIABLES and info.context == NEW:
            raise ValueError(SECRET_IS_NAMED.told(name=self.name))
        if self.name.startswith(RESERVED_VARIABLES):
            raise ValueError(VARIABLE_IS_FREE.told(name=self.name))
        return self


class ComputeSpec(Declared):
    """How many, and where. With `sft run` only `nodes`, `processesPerNode` and `env` count, and for
    `runPolicy.preflight` whether accelerators are named."""

    model_config = rules(VARIABLE_NAMES_DIFFER)

    nodes: int = Field(default=1, ge=1, le=1024, description="Launchers, one a node.")
    processes_per_node: int = Field(default=1, ge=1, le=64, description="Ranks a node: its GPUs, or 1 on a CPU.")
    image: str | None = Field(
        default=None,
        max_length=512,
        pattern=IMAGE,
        description="The pods' image. Absent: the trainer's, as the operator names it.",
    )
    image_pull_secrets: list[SecretReference] = Field(
        default=[], max_length=8, description="Secrets with the image registry's passwords."
    )
    resources: ResourcesSpec = ResourcesSpec()
    node_selector: dict[QualifiedName, LabelValue] = Field(
        default={}, max_length=32, description="Labels that a node must have."
    )
    tolerations: list[TolerationSpec] = Field(default=[], max_length=32, description="Taints that a node may have.")
    priority_class_name: ObjectName | None = Field(
        default=None, description="Whom the job's pods may displace, and who displaces them."
    )
    env: list[EnvVar] = Field(
        default=[], max_length=64, description="Variables for libraries, as HF_TOKEN, AWS_ACCESS_KEY_ID and NCCL_DEBUG."
    )

    @model_validator(mode="after")
    def _variables(self, info: ValidationInfo) -> Self:
        names = [variable.name for variable in self.env]
        for name in names:
            # Not of a stored job: it may be older than this rule, and `sft run` takes the last.
            if names.count(name) > 1 and info.context == NEW:
                raise ValueError(VARIABLE_NAMES_DIFFER.told(name=name))
        return self

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node
