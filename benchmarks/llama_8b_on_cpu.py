"""Memory of a model with the shapes of LLaMA-3.1-8B on a CPU, against what a plan says.

Usage::

    python benchmarks/llama_8b_on_cpu.py [--folder /tmp/llama-8b-shapes] [--keep] [--layers 32]

The weights are random, in bfloat16, and are written once as safetensors files (16 GB, which the end removes unless
``--keep`` is given). Each way to hold them runs in a process of its own: all in memory, and by ``offload="disk"``. It
plans and then runs one sweep of one short pack (one question with four answers) under 33 conditions: the whole model
and every layer skipped. Peak memory is the highest resident set of the process, as the kernel keeps it. Pages of mapped
files count there, although the kernel may take them back; the highest memory without them is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

import depthlens as dl

GIB = 1 << 30
TASK = "capitals_continuation"
SHARD = 2 * GIB
# https://huggingface.co/meta-llama/Llama-3.1-8B/blob/main/config.json
SHAPES = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": False,
}


def write(folder: Path, n_layers: int) -> None:
    """Configuration, a tokenizer of one token a byte, and random weights in files of 2 GiB."""
    config = LlamaConfig(**SHAPES | {"num_hidden_layers": n_layers}, architectures=["LlamaForCausalLM"])
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(["<bos>", "<eos>"])
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>").save_pretrained(folder)
    with torch.device("meta"):
        shapes = {key: t.shape for key, t in AutoModelForCausalLM.from_config(config).state_dict().items()}
    torch.manual_seed(0)
    held: dict[str, torch.Tensor] = {}
    files: dict[str, str] = {}

    def flush() -> None:
        name = f"model-{len(set(files.values())):05d}.safetensors"
        save_file(held, folder / name, metadata={"format": "pt"})
        files.update(dict.fromkeys(held, name))
        held.clear()

    for key, shape in shapes.items():
        held[key] = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, dtype=torch.bfloat16) * 0.02
        held[key] = held[key].to(torch.bfloat16)
        if sum(t.nbytes for t in held.values()) > SHARD:
            flush()
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


class Watch:
    """The highest memory of this process that no file backs, looked at every 50 ms, since the last `reset`."""

    def __init__(self) -> None:
        self.anonymous = 0
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self.anonymous = max(self.anonymous, status("RssAnon"))
            time.sleep(0.05)


def status(entry: str) -> int:
    """An entry of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")) << 10


def run(folder: Path, offload: str | None) -> None:
    """Plan and run the sweep in this process; prints one line of JSON."""
    options = {"limit": 1, "num_fewshot": 0, "store": None, "progress": False}
    watch, start = Watch(), time.monotonic()
    lens = dl.load(folder, dtype="bfloat16", device="cpu", offload=offload)
    loaded, load_peak = time.monotonic() - start, status("VmHWM")
    plan = dl.plan(lens, [TASK], "layers", **options)
    start = time.monotonic()
    result = dl.condition_sweep(lens, [TASK], "layers", **options)
    about = {
        "conditions": int(result.docs.condition.nunique()),
        "tokens": int(plan.table.tokens.sum()),
        "load_seconds": loaded,
        "load_peak": load_peak,
        "seconds": time.monotonic() - start,
        "planned": plan.peak_bytes,
        "peak": status("VmHWM"),
        "anonymous": watch.anonymous,
    }
    print(json.dumps(about), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/llama-8b-shapes"))
    parser.add_argument("--layers", type=int, default=SHAPES["num_hidden_layers"], help="fewer for a quick look")
    parser.add_argument("--keep", action="store_true", help="leave the weights")
    parser.add_argument("--only", choices=("memory", "disk"), help="one of the two ways")
    parser.add_argument("--run", choices=("memory", "disk"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(args.folder, "disk" if args.run == "disk" else None)
        return
    if not (args.folder / "model.safetensors.index.json").exists():
        args.folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(args.folder).free < 20 * GIB:
            raise SystemExit(f"{args.folder}: the weights take 16 GB, and there is not so much room")
        write(args.folder, args.layers)
    try:
        for way in ("memory", "disk"):
            if args.only in (None, way):
                command = [sys.executable, __file__, "--folder", str(args.folder), "--run", way]
                found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                about = json.loads(found.splitlines()[-1])
                sizes = {key: about[key] / GIB for key in ("planned", "peak", "anonymous", "load_peak")}
                print(
                    f"{way}: {about['conditions']} conditions, {about['tokens']} tokens; loaded in "
                    f"{about['load_seconds']:.0f} s, run in {about['seconds']:.0f} s; "
                    f"planned {sizes['planned']:.1f} GiB, peak {sizes['peak']:.1f} GiB "
                    f"({sizes['anonymous']:.1f} GiB without mapped files; "
                    f"{sizes['load_peak']:.1f} GiB while it was loaded)",
                    flush=True,
                )
    finally:
        if not args.keep:
            shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
