"""A user's YAML file in, the accepted manifest out. Called by every command that takes a JOB.yaml."""

from pathlib import Path
from typing import Any

import yaml

from sft_cli.refusal import Refusal
from sftjob.job import Manifest, parse_manifest

_OF_DATA = (".jsonl", ".ndjson", ".parquet", ".arrow", ".csv")
"""Not `.json`: a job can be written so too."""


def read_manifest(path: Path) -> Manifest:
    """Raises Refusal where the file can't be read as YAML, SpecError with all problems of what stands in it."""
    return parse_manifest(read_document(path))


def read_document(path: Path) -> Any:
    """What stands in it, whatever it is. Raises Refusal."""
    if path.suffix in _OF_DATA:
        raise Refusal(
            f"{path} is a data file, but a job's YAML file is expected here; give data with --data, once for each file"
        )
    try:
        documents = list(yaml.safe_load_all(path.read_text()))
    except OSError as error:
        raise Refusal(f"{path}: {error.strerror}; name a YAML file with one SFTJob") from None
    except UnicodeDecodeError:
        raise Refusal(f"{path}: not UTF-8 text; name a YAML file with one SFTJob") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise Refusal(f"{place}: not valid YAML, {error.problem}; correct this line") from None
    except yaml.YAMLError as error:
        raise Refusal(f"{path}: not valid YAML, {' '.join(str(error).split())}") from None
    if len(documents) > 1:
        raise Refusal(f"{path}: {len(documents)} documents; put each SFTJob into a file of its own")
    return documents[0] if documents else None
