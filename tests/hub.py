"""A few handwritten documents in the schemas of the hub's data sets, in folders that `datasets` takes for them.

`datasets.load_dataset("cais/mmlu", "anatomy")` reads the folder ``cais/mmlu`` of the working directory where there is
one. lm-eval's own YAML files, prompts, filters and metrics therefore run on these documents without a network.
"""

import hashlib
import json
import re
from pathlib import Path

import lm_eval

MMLU = (Path(lm_eval.__file__).parent / "tasks/mmlu/default").glob("mmlu_*.yaml")
SUBJECTS = sorted(subject for path in MMLU for subject in re.findall(r"dataset_name\W+(\w+)", path.read_text()))
FILE = Path(__file__).parent / "data" / "hub.json"  # by name, configuration and split
DATA_SETS = json.loads(FILE.read_text(encoding="utf-8"))
(mmlu,) = DATA_SETS["cais/mmlu"].values()
DATA_SETS["cais/mmlu"] = {one: json.loads(json.dumps(mmlu).replace("SUBJECT", one)) for one in SUBJECTS}


def write(folder: Path) -> Path:
    """Write all data sets; a process whose working directory this is finds them instead of the hub's."""
    for name, configs in DATA_SETS.items():
        lines = ["---", "configs:"]
        for config, splits in configs.items():
            lines += [f"- config_name: {config}", "  data_files:"]
            for split, docs in splits.items():
                text = "".join(json.dumps(doc) + "\n" for doc in docs)
                # `datasets` keeps what it once read under the names of the files, whatever they hold by now
                file = f"{config}/{split}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
                path = folder / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                lines.append(f"  - {{split: {split}, path: {file}}}")
        (folder / name / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
    return folder
