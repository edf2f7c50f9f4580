"""Ranks whose memory is too small for a pack: the next attempt takes parts of packs, and trains the same."""

import pytest
from e2e.local_run import FAULTS, LocalRun

LARGEST = 150
"""Tokens that memory is there for: packs have up to 256, documents fewer."""


def test_ranks_without_the_memory_for_a_pack_train_parts_of_packs_in_the_next_attempt(
    run: LocalRun, undisturbed: LocalRun
) -> None:
    run.environment = {"PYTHONPATH": FAULTS, "SFTJOB_TEST_MEMORY": str(LARGEST)}
    run.start().succeed()
    attempts = run.status()["attempts"]
    last, first = attempts["history"]
    assert (first["reason"], attempts["shortages"]) == ("OutOfMemory", 1)
    assert "memory ran out in a micro-batch of" in first["message"]
    assert "; the next attempt takes parts of packs" in first["message"]
    assert last["reason"] == "Succeeded"
    half = run.status()["progress"]["microBatchTokens"]
    assert 64 < half <= 128  # half of what the fullest pack holds
    assert f"packs in parts of {half} tokens" in run.log

    ours, theirs = run.metrics(), undisturbed.metrics()
    assert [line["samples"] for line in ours.values()] == [line["samples"] for line in theirs.values()]
    for figure in ("loss", "grad_norm"):
        expected = [line[figure] for line in theirs.values()]
        assert [line[figure] for line in ours.values()] == pytest.approx(expected, rel=1e-5), figure
    assert {line["micro_batches"] for line in theirs.values()} == {2}
    assert min(line["micro_batches"] for line in ours.values()) > 2
