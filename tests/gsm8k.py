"""Twenty problems of our own in the format of GSM8K, as a task of a user's own folder that includes lm-eval's."""

from pathlib import Path
from typing import Any

import lm_eval
import yaml

DOCUMENTS = Path(__file__).parent / "data" / "worked_problems.jsonl"
N_TEST = 10  # the first documents are of the test split, the others of the train split


def write_task(folder: Path, name: str, **config: Any) -> None:
    """Write ``NAME.yaml`` with its data: lm-eval's ``gsm8k`` on these documents, but for what ``config`` says."""
    lines = DOCUMENTS.read_text(encoding="utf-8").splitlines(keepends=True)
    for split, part in (("test", lines[:N_TEST]), ("train", lines[N_TEST:])):
        (folder / f"{split}.jsonl").write_text("".join(part), encoding="utf-8")
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    own = {"include": str(Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"), "task": name}
    data = {"data_files": files, "cache_dir": str(folder / "cache")}
    task = own | {"dataset_path": "json", "dataset_name": None, "tag": None, "dataset_kwargs": data}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | config), encoding="utf-8")
