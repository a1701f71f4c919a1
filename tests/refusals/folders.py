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


def write(name: str, content: str | bytes) -> Callable[[Path], Path | None]:
    """Write a file; one that could be a model by itself is loaded in place of the folder."""

    def change(folder: Path) -> Path | None:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path if path.suffix in (".gguf", ".bin") else None

    return change


def cut(name: str, size: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

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
    (without("config.json"), "holds no config.json; give a folder written by save_pretrained"),
    (pickled, "holds no .safetensors weights; convert them with model.save_pretrained(folder), since pickled"),
    (without("tokenizer.json", "tokenizer_config.json"), "has no tokenizer files; save its tokenizer into the same"),
    *((write("config.json", text), "cannot be read: its config.json is not JSON (") for text in ("{", b"\xff\xfe")),
    *((write("config.json", text), "its config.json names no model_type; give a folder") for text in ("[1]", "{}")),
    (config(architectures=["GPT2Model"]), "architecture GPT2Model is not supported: transformers"),
    (config(architectures="LlamaForCausalLM"), "architecture (not named in config.json) is not supported"),
    (config(architectures=["Mine"], auto_map={"AutoConfig": "c.C"}), "brings code of its own, which depthlens never"),
    (config(num_hidden_layers=7), "lacks 18 of the weights that its config.json wants, e.g. "),
    (config(intermediate_size=64), "has shape [32, 48], its config.json wants [32, 64]"),
    *((cut(name, 100), "cannot be read: ") for name in ("model.safetensors", "tokenizer.json")),
    (write("m.bin", b"x"), "m.bin' is a file but not a .gguf file; give a directory or a .gguf file"),
    (write("m.gguf", b"not GGUF at all, whatever it is called"), "cannot be read: it is not a GGUF file (it does not"),
    (cut_gguf, "m.gguf' cannot be read: "),
    (write("m.gguf", b"GGUF\3" + b"\1" * 40), "it holds no weights, or does not say how many layers"),
]
