"""A command that can't do what it was asked: one sentence for its user, without a traceback, and an exit code."""

from sftjob.failure import ExitCode


class Refusal(Exception):
    def __init__(self, message: str, *, code: int = ExitCode.CONFIGURATION) -> None:
        super().__init__(message)
        self.code = code
