"""Folders and files that are no model, or a damaged one: what is done to a good folder, a part of the line.

What is done gets the folder, and returns what to load in its place, if not the folder itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import tiny


def config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_gguf(folder: Path) -> Path:
    return tiny.gguf_head(folder / "m.gguf")


FOLDERS = [
    (without("config.json"), "Unrecognized model in"),
    (pickled, "no file named model.safetensors"),
    (without("tokenizer.json", "tokenizer_config.json"), "Couldn't instantiate the backend tokenizer"),
    (config(model_type="mine", auto_map={"AutoConfig": "c.C"}), "contains custom code"),
    (config(num_hidden_layers=7), "its files lack 18 of its weights, e.g. "),
    (config(intermediate_size=64), "has shape [32, 48], not [32, 64]"),
    (cut_gguf, "m.gguf' cannot be loaded: "),
]
