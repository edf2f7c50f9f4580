"""The receipt of the data: its words, and what of it fits where room is short."""

from datetime import UTC, datetime

from sftjob.failure import Reason
from sftjob.outcome import Outcome
from sftjob.receipt import DataReceipt, DatasetReceipt, bounded

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def a_receipt(*, rows: int, datasets: int) -> DataReceipt:
    return DataReceipt(
        samples=4200,
        tokens=30_000,
        trained_tokens=20_000,
        dropped=1,
        bad_lines=25,
        first_bad_lines=[bounded(f"/data/chats.jsonl:{row}: text: " + "x" * 900) for row in range(rows)],
        packs=12,
        datasets=[
            DatasetReceipt(name=f"d{number}", format="text", samples=7, tokens=8, trained_tokens=9, bad_lines=2)
            for number in range(datasets)
        ],
    )


def test_it_is_told_in_sum_by_dataset_and_with_its_bad_rows() -> None:
    receipt = a_receipt(rows=0, datasets=2).model_copy(
        update={"held_out": 3, "first_bad_lines": ["a.jsonl:7: text: no"]}
    )
    assert receipt.in_words() == [
        "4,200 samples, 30,000 tokens, 20,000 of them trained; 3 samples held out; 0 truncated, 1 dropped, "
        "25 bad rows skipped; 12 packs",
        "  d0 (text): 7 samples, 8 tokens, 9 of them trained; 0 truncated, 0 dropped, 2 bad rows skipped",
        "  d1 (text): 7 samples, 8 tokens, 9 of them trained; 0 truncated, 0 dropped, 2 bad rows skipped",
        "  skipped a.jsonl:7: text: no",
        "  and 24 more rows",
    ]


def test_one_dataset_without_bad_rows_is_one_line() -> None:
    receipt = DataReceipt(samples=3, tokens=30, trained_tokens=20, cut_by_packs=1, packs=2)
    assert receipt.in_words() == [
        "3 samples, 30 tokens, 20 of them trained; 0 truncated, 0 dropped; 2 packs, cutting 1 sample"
    ]


def test_a_termination_message_keeps_the_sums_where_the_lists_do_not_fit() -> None:
    outcome = Outcome(
        attempt=1,
        node_rank=0,
        reason=Reason.RANK_KILLED,
        exit_code=70,
        message="rank 3 is gone",
        log_tail="the last line",
        data=a_receipt(rows=20, datasets=32),
        started_at=NOW,
        ended_at=NOW,
    )
    text = outcome.to_message()
    assert len(text.encode()) <= 4096
    kept = Outcome.from_json(text)
    assert (kept.message, kept.log_tail) == ("rank 3 is gone", "the last line")
    assert kept.data == a_receipt(rows=0, datasets=0)


def test_a_receipt_that_fits_stays_whole() -> None:
    receipt = a_receipt(rows=1, datasets=2)
    outcome = Outcome(
        attempt=1, node_rank=0, reason=Reason.SUCCEEDED, exit_code=0, data=receipt, started_at=NOW, ended_at=NOW
    )
    assert Outcome.from_json(outcome.to_message()).data == receipt
