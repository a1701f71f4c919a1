"""What tests of the store share: one tiny model's sweep, what it read and computed, and the parts it left."""

from pathlib import Path
from typing import Any

import depthlens as dl

CHOICE, WRITTEN = "capitals_continuation", "kv_retrieval_4"
LIMIT = 3


def run(lens: Any, where: Any, ablate: Any = "layers", tasks: Any = (CHOICE, WRITTEN), **options: Any) -> dl.Result:
    """A sweep of the tiny model with a store; `LIMIT` documents."""
    options = {"limit": LIMIT, "progress": False} | options
    where = where if where is None else str(where)
    return dl.condition_sweep(lens, list(tasks), ablate, store=where, **options)


def counts(result: dl.Result) -> tuple[int, int]:
    """Rows that were read, and rows that were computed."""
    return result.record["store"]["rows_read"], result.record["store"]["rows_computed"]


def parts(where: Path) -> list[Path]:
    return sorted(where.glob("*/*/*.parquet"))


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)
