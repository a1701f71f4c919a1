"""Train the adapters `smollm2-135m-direct` and `smollm2-135m-cot`: LoRA on the embedded model, seeded, resumable.

    python data/train_adapters.py --adapter cot              train, evaluate, write data/adapters/smollm2-135m-cot
    python data/train_adapters.py --adapter cot --resume     go on where an interrupted run saved last

Both see the same problems in the same order (training_problems.py) under the same settings; the one difference is that
``cot`` is shown the worked solution of a word problem and ``direct`` its number. The loss is taken on answers and the
end-of-text token that closes a text, never on questions. Texts stand end to end in rows, each blind to the others.

What step n trains on depends on the seed and n alone and there is no dropout, so that a run that is interrupted and
resumed gives the weights of an undisturbed one. Two CPU cores need about an hour for both at once, one core each.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import training_problems as problems
import training_scores as scores
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional

import depthlens as dl

HERE = Path(__file__).resolve().parent
BASE = "smollm2-135m"
ADAPTERS = ("direct", "cot")
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COLUMNS = ["step", "tokens", "loss", *problems.KINDS, *(f"{kind}_right" for kind in problems.KINDS)]
# Word problems are the hard part; open answers are only kept from getting worse.
WEIGHTS = {"letters": 1.0, "open": 0.3, "retrieval": 1.0, "arithmetic": 2.0}

log = logging.getLogger("train_adapters")


@dataclass(frozen=True)
class Settings:
    """All that decides the weights, beside the problems and the base model."""

    adapter: str
    steps: int = 260
    seed: int = 0
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1e-3
    warmup: int = 20
    final_share: float = 0.05  # of the learning rate, reached along a cosine at the last step
    clip: float = 1.0
    batch_tokens: int = 1024  # tokens of one forward pass; the gradients of a step are summed over its passes
    row: int = 96  # least length of a row in tokens


@dataclass(frozen=True)
class Text:
    """Token ids of one text, and which of them are answers: spans (kind, start, end)."""

    tokens: list[int]
    answers: list[tuple[str, int, int]]


def encode(tokenizer, texts: Sequence[Sequence[problems.Problem]], adapter: str) -> list[Text]:
    """Problems as lm-eval puts them: answer after a space, problems of one text divided by a blank line."""
    encoded = []
    for shots in texts:
        tokens: list[int] = []
        answers = []
        for i, problem in enumerate(shots):
            tokens += tokenizer(("\n\n" if i else "") + problem.prompt, add_special_tokens=False).input_ids
            start = len(tokens)
            answer = problem.steps if adapter == "cot" else problem.direct
            tokens += tokenizer(f" {answer}", add_special_tokens=False).input_ids
            if i == len(shots) - 1:
                tokens.append(tokenizer.eos_token_id)
            answers.append((problem.kind, start, len(tokens)))
        encoded.append(Text(tokens, answers))
    return encoded


def batches(texts: Sequence[Text], settings: Settings) -> Iterator[list[list[Text]]]:
    """Texts as rows, long ones first, so that a pass has rows of one length and little is wasted.

    Yields:
        Rows of one forward pass; each row is a list of texts.
    """
    waiting = sorted(texts, key=lambda text: -len(text.tokens))
    while waiting:
        width = max(settings.row, len(waiting[0].tokens))
        rows: list[list[Text]] = []
        for _ in range(max(1, settings.batch_tokens // width)):
            row: list[Text] = []
            room = width
            for text in list(waiting):
                if len(text.tokens) <= room:
                    row.append(text)
                    waiting.remove(text)
                    room -= len(text.tokens)
            rows += [row] if row else []
        yield rows


def forward(model, rows: Sequence[Sequence[Text]]) -> tuple[torch.Tensor, torch.Tensor, list[tuple[str, int]]]:
    """Logits of the answer tokens.

    Position ids that start again make transformers hide the texts of a row from each other.

    Returns:
        Logits [answer token, d_vocab], token ids [answer token], and (kind, number of tokens) of every answer in order.
    """
    width = max(sum(len(text.tokens) for text in row) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    at: list[tuple[int, int]] = []
    targets: list[int] = []
    answers = []
    for r, row in enumerate(rows):
        start = 0
        for text in row:
            end = start + len(text.tokens)
            tokens[r, start:end] = torch.tensor(text.tokens)
            positions[r, start:end] = torch.arange(len(text.tokens))
            for kind, first, last in text.answers:
                at += [(r, start + i - 1) for i in range(first, last)]
                targets += text.tokens[first:last]
                answers.append((kind, last - first))
            start = end
    base = model.get_base_model()
    with torch.autocast("cpu", torch.bfloat16):
        states = base.model(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
        r, i = torch.tensor(at).T
        logits = base.lm_head(states[r, i])
    return logits.float(), torch.tensor(targets), answers


class Trainer:
    """One run: model, optimiser, and the folder where it saves itself."""

    def __init__(self, model, tokenizer, settings: Settings, checkpoint: Path) -> None:
        torch.manual_seed(settings.seed)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=PROJECTIONS,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        self.model = get_peft_model(model, config).train()
        self.tokenizer = tokenizer
        self.settings = settings
        self.checkpoint = checkpoint
        self.weights = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.AdamW(
            self.weights.values(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.curve: list[dict[str, float]] = []

    @property
    def done(self) -> int:
        return len(self.curve)

    def run(self, until: int | None = None, save_every: int = 25) -> None:
        """Train up to step ``until`` (the last one by default), saving every so often."""
        while self.done < (until or self.settings.steps):
            start = time.monotonic()
            row = self.step()
            self.curve.append(row)
            shown = " ".join(f"{key} {value:.3g}" for key, value in row.items())
            log.info("%s  %.0f tokens/s", shown, row["tokens"] / (time.monotonic() - start))
            if self.done % save_every == 0 or self.done == self.settings.steps:
                self.save()

    def step(self) -> dict[str, float]:
        """One step; its row of the loss curve: mean loss of answer tokens and share of right answers by kind."""
        drawn = problems.step(self.settings.seed, self.done, self.settings.steps)
        texts = encode(self.tokenizer, drawn, self.settings.adapter)
        n_tokens: dict[str, int] = {}
        for text in texts:
            for kind, first, last in text.answers:
                n_tokens[kind] = n_tokens.get(kind, 0) + last - first
        losses = dict.fromkeys(n_tokens, 0.0)
        right: dict[str, list[bool]] = {kind: [] for kind in n_tokens}
        for rows in batches(texts, self.settings):
            logits, targets, answers = forward(self.model, rows)
            each = functional.cross_entropy(logits, targets, reduction="none")
            hits = logits.argmax(-1) == targets
            total = torch.zeros(())
            start = 0
            for kind, n in answers:
                part = each[start : start + n].sum() / n_tokens[kind]
                total = total + WEIGHTS[kind] * part
                losses[kind] += part.item()
                right[kind].append(bool(hits[start : start + n].all()))
                start += n
            total.backward()
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(self.done)
        torch.nn.utils.clip_grad_norm_(self.weights.values(), self.settings.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return {
            "step": self.done + 1,
            "tokens": sum(len(text.tokens) for text in texts),
            "loss": sum(WEIGHTS[kind] * loss for kind, loss in losses.items()),
            **losses,
            **{f"{kind}_right": sum(hit) / len(hit) for kind, hit in right.items()},
        }

    def learning_rate(self, step: int) -> float:
        s = self.settings
        if step < s.warmup:
            return s.learning_rate * (step + 1) / s.warmup
        done = (step - s.warmup) / max(1, s.steps - s.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return s.learning_rate * (s.final_share + (1 - s.final_share) * cosine)

    def save(self) -> None:
        """Save weights, moments, settings and loss curve: one file, so that it is there whole or not at all."""
        tensors = {f"weight {name}": p.detach() for name, p in self.weights.items()}
        for i, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"moment {i} {key}": value for key, value in moments.items()}
        about = {"settings": json.dumps(asdict(self.settings)), "curve": json.dumps(self.curve)}
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.checkpoint.with_suffix(".new")
        save_file(tensors, fresh, metadata=about)
        os.replace(fresh, self.checkpoint)

    def resume(self) -> None:
        """Go back to what was saved last.

        Raises:
            SystemExit: it was trained with other settings.
        """
        with safe_open(self.checkpoint, "pt") as file:
            about = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        found, wanted = json.loads(about["settings"]), asdict(self.settings)
        if found != wanted:
            other = ", ".join(f"{key} {found[key]} (now {wanted[key]})" for key in wanted if found[key] != wanted[key])
            raise SystemExit(f"{self.checkpoint} was trained with {other}; give the same, or leave --resume out")
        state: dict[int, dict[str, torch.Tensor]] = {}
        with torch.no_grad():
            for key, value in tensors.items():
                what, name = key.split(" ", 1)
                if what == "weight":
                    self.weights[name].copy_(value)
                else:
                    i, moment = name.split()
                    state.setdefault(int(i), {})[moment] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        self.curve = json.loads(about["curve"])


# --- what is shipped -------------------------------------------------------------------------------------


def write(trainer: Trainer, out: Path) -> None:
    """The adapter as peft writes it, in half precision, and the loss curve."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: w.half() for name, w in get_peft_model_state_dict(trainer.model).items()}
    save_file(weights, out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "adapter_model.safetensors").chmod(0o644)  # safetensors keeps its files to the user
    trainer.model.peft_config["default"].save_pretrained(out)
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    # the base by its name, wherever it lies; a list that peft keeps as a set, in an order that stays
    config |= {"base_model_name_or_path": BASE, "target_modules": PROJECTIONS, "inference_mode": True}
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    with (out / "training.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: format(value, ".6g") for key, value in row.items()} for row in trainer.curve)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True, choices=ADAPTERS)
    parser.add_argument("--steps", type=int, default=Settings.steps, help="length of the run (%(default)s)")
    parser.add_argument("--stop-after", type=int, help="stop after this step of the run; --resume goes on from there")
    parser.add_argument("--stage-every", type=int, help="write the adapter after every so many steps, too: OUT-stepN")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--out", type=Path, help="folder of the adapter (data/adapters/smollm2-135m-ADAPTER)")
    parser.add_argument(
        "--checkpoint", type=Path, help="where the run saves itself (runs/adapters/ADAPTER.safetensors)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--limit", type=int, help="evaluate on the first so many documents only")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    out = args.out or HERE / "adapters" / f"{BASE}-{args.adapter}"
    checkpoint = args.checkpoint or HERE.parent / "runs" / "adapters" / f"{args.adapter}.safetensors"
    settings = Settings(args.adapter, args.steps, args.seed)
    lens = dl.load(BASE)
    trainer = Trainer(lens.model, lens.tokenizer, settings, checkpoint)
    if args.resume:
        trainer.resume()
    end = args.stop_after or settings.steps
    if args.stage_every:
        for step in range(args.stage_every, end + 1, args.stage_every):
            if step > trainer.done:
                trainer.run(step)
                write(trainer, out.with_name(f"{out.name}-step{step}"))
    trainer.run(end)
    if trainer.done < settings.steps:
        return
    write(trainer, out)
    found, base = scores.evaluate_adapter(out, args.limit), scores.evaluate(BASE, args.limit)
    (out / "README.md").write_text(scores.card(asdict(settings), trainer.curve, found, base), encoding="utf-8")
    log.info("wrote %s", out)


if __name__ == "__main__":
    main()
