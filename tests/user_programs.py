"""Programs of a user over a tiny model: contexts, hooks and edits in any order, with questions between them.

A program is a list of steps, which are plain data, so that it can be printed, shortened and run again. Each step is
done to the model of a Lens and to a plain copy of it. A question is answered by depthlens over the one and by hand over
the other: on a copy whose forward methods obey the conditions in force, in the order in which they were entered.

What a condition and a hook of the user on the very same output are together depends on which comes first; programs
have none of both there.
"""

from __future__ import annotations

import copy
import shutil
import threading
from contextlib import ExitStack
from typing import Any

import mini_tasks
import model_classes
import numpy as np
import surgery
import torch
from drawn_programs import Step
from plain_conditions import PATHS, Edit, depths, edits, logits, logprob, module, written
from torch import nn

import depthlens as dl
from depthlens import requests

FAMILIES = ("llama-gqa", "qwen3", "gemma2", "gemma3_text")  # walked; with head norms; whole passes; walked, more norms
# largest difference, as a share of the largest number: float32 sums in another order give 1e-5, an edit that is
# missed 1e-2 and more
CLOSE = 5e-4
N_NEW = 4
QUESTIONS = ["In short", "A longer question, which has 41 letters", "Another"]


def lens(family: str) -> dl.Lens:
    """A tiny model of which every part matters."""
    return model_classes.lens(family) if family.startswith("gemma") else surgery.rough_lens(family)


class Hook:
    """A steering vector: everywhere, late in the row, by the length of it or by the rows there are."""

    def __init__(self, kind: str, strength: float, seed: int) -> None:
        self.kind, self.strength, self.seed = kind, strength, seed

    def __call__(self, module: nn.Module, args: Any, out: Any) -> Any:
        x = out if isinstance(out, torch.Tensor) else out[0]
        vector = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(self.seed)) * self.strength
        n_rows, n = x.shape[:2]
        late = (torch.arange(n) >= 13)[:, None]
        by = {"steer": 1.0, "late": late, "length": n / 20, "rows": float(n_rows)}[self.kind]
        new = x + vector * by
        if isinstance(out, torch.Tensor):
            return new
        if isinstance(out, tuple):
            return (new, *out[1:])
        out[next(iter(out))] = new
        return out


class WrongNumber(AssertionError):
    """A question that depthlens answers otherwise than plain torch and transformers do."""


class Session:
    """A user at work.

    Args:
        family: Of the model.
        folder: With the tasks, and for the store.
        beside: A session in another thread over the same model.
    """

    def __init__(self, family: str, folder: Any, beside: Session | None = None) -> None:
        self.lens = beside.lens if beside else lens(family)
        self.plain = beside.plain if beside else copy.deepcopy(self.lens.model)
        self.folder, self.beside = folder, beside
        self.inside: dict[int, tuple[str, ExitStack]] = {}
        self.hooks: dict[int, tuple[Hook, list[Any]]] = {}
        self.engine = dl.Engine(self.lens, progress=False)

    def run(self, steps: list[Step], then: Any = lambda: None) -> None:
        """Do all steps, and something before contexts are left; the first wrong answer ends it."""
        try:
            with torch.no_grad():
                for step in steps:
                    getattr(self, step[0])(*step[1:])
                then()
        finally:
            for _, stack in [*self.inside.values()]:
                stack.close()

    @property
    def foreign(self) -> bool:
        """Whether something is on the model that is no condition."""
        return self.beside.foreign if self.beside else bool(self.hooks) or self.plain.training

    def enter(self, n: int, condition: str) -> None:
        self.inside[n] = condition, ExitStack()
        self.inside[n][1].enter_context(dl.ablated(self.lens, condition))

    def leave(self, n: int) -> None:
        if n in self.inside:
            self.inside.pop(n)[1].close()

    def hook(self, n: int, name: str, *about: Any) -> None:
        made = Hook(*about)
        self.hooks[n] = made, [module(m, name).register_forward_hook(made) for m in (self.lens.model, self.plain)]

    def unhook(self, n: int) -> None:
        for handle in self.hooks.pop(n)[1] if n in self.hooks else ():
            handle.remove()

    def strength(self, n: int, factor: float) -> None:
        if n in self.hooks:
            self.hooks[n][0].strength *= factor

    def weight(self, name: str, how: str, factor: float) -> None:
        for model in (self.lens.model, self.plain):
            part: Any = module(model, name)
            if how == "in place":
                part.weight.mul_(factor)
            elif how == ".data":
                part.weight.data.mul_(factor)
            elif how == "replaced":
                part.weight = nn.Parameter(part.weight * factor, requires_grad=False)
            else:
                new = nn.Linear(part.in_features, part.out_features, bias=part.bias is not None).requires_grad_(False)
                new.load_state_dict(part.state_dict())
                new.weight.mul_(factor)
                layer, _, own = name.partition(".")
                module(model, layer).set_submodule(PATHS[own], new.eval())

    def set(self, name: str, form: str, factor: float) -> None:
        for model in (self.lens.model, self.plain):
            part = module(model, name)
            key = next(key for key in ("scaling", "variance_epsilon", "eps") if key in vars(part))
            value = float(vars(part)[key]) * factor + (0 if key == "scaling" else 0.1)
            setattr(part, key, {"float": float, "np.float32": np.float32, "tensor": torch.tensor}[form](value))

    def mode(self, training: bool) -> None:
        for model in (self.lens.model, self.plain):
            model.train(training)

    # -- questions --

    @property
    def made(self) -> list[Edit]:
        """By hand, what the conditions do that are in force."""
        return [edit for condition, _ in self.inside.values() for edit in edits(condition, self.lens)]

    def under(self, conditions: list[str]) -> list[list[Edit]]:
        return [self.made, *(self.made + edits(condition, self.lens) for condition in conditions)]

    def ids(self, text: str) -> list[int]:
        return self.lens.tokenizer(text, add_special_tokens=False).input_ids

    def ask(self, kind: str, *about: Any) -> None:
        """Ask and compare."""
        try:
            getattr(self, f"ask_{kind}")(*about)
        except dl.UserError as refusal:
            # what needs a walk through the layers
            if kind != "lens" or not (self.foreign or self.lens.name == "gemma2"):
                raise WrongNumber(f"{kind} is refused: {refusal}") from None

    def close(self, found: Any, wanted: Any, what: str, atol: float = CLOSE) -> None:
        found, wanted = (np.asarray(x, dtype=float) for x in (found, wanted))
        apart = np.abs(found - wanted).max() if found.shape == wanted.shape else np.inf
        if not apart <= atol * max(1.0, np.abs(wanted).max()):
            raise WrongNumber(f"{what}: {apart:.3g} apart, of {np.abs(wanted).max():.3g}")

    def same(self, found: str, wanted: str | None, what: str) -> None:
        if wanted is not None and str(found) != wanted:
            raise WrongNumber(f"{what}: {str(found)!r} in place of {wanted!r}")

    def ask_model(self, prompts: list[str]) -> None:
        rows = [self.ids(prompt) for prompt in prompts]
        self.close(self.lens.model(torch.tensor(rows)).logits, logits(self.plain, self.made, rows), "lens.model")

    def ask_hf(self, prompts: list[str], _: list[str]) -> None:
        ids = self.ids(prompts[0])
        options = {"do_sample": False, "pad_token_id": 258, "max_new_tokens": N_NEW}
        new = self.lens.model.generate(torch.tensor([ids]), **options)[0, len(ids) :]
        wanted = written(self.plain, self.made, ids, N_NEW, self.lens.tokenizer)
        self.same(self.lens.tokenizer.decode(new, skip_special_tokens=True), wanted, "lens.model.generate")

    def ask_next(self, prompts: list[str], conditions: list[str]) -> None:
        found = dl.next_token(self.lens, prompts[0], conditions, k=self.lens.model.config.vocab_size)
        for column, made in zip(found, self.under(conditions), strict=True):
            wanted = logits(self.plain, made, [self.ids(prompts[0])])[0, -1].softmax(-1)
            self.close(np.sort(found[column]), wanted.sort().values, f"next_token {column}")  # some have one text

    def ask_generate(self, prompts: list[str], conditions: list[str]) -> None:
        found = dl.generate(self.lens, prompts, conditions, max_new_tokens=N_NEW, progress=False)
        for column, made in zip(found, self.under(conditions), strict=True):
            for row, prompt in enumerate(prompts):
                wanted = written(self.plain, made, self.ids(prompt), N_NEW, self.lens.tokenizer)
                self.same(found[column].iloc[row], wanted, f"generate {column}")

    def ask_lens(self, prompts: list[str], _: list[str]) -> None:
        found = dl.logit_lens(self.lens, prompts[0])
        wanted = depths(self.plain, self.made, self.ids(prompts[0]))
        self.close(found.probability, wanted.max(-1).values.exp(), "logit_lens probability")
        self.close(found.entropy, -(wanted.exp() * wanted).sum(-1), "logit_lens entropy")

    def ask_score(self, prompts: list[str], conditions: list[str]) -> None:
        pairs = [(self.ids(prompt), self.ids(answer)) for prompt in prompts for answer in (" one", " two", "")][:5]
        asked = [requests.LoglikelihoodRequest(tuple(c), tuple(a)) for c, a in pairs if a]
        named = [dl.parse_condition(text) for text in ("baseline", *conditions)]
        found = self.engine.loglikelihood(asked, named)
        for condition, answers, made in zip(named, found, self.under(conditions), strict=True):
            wanted = [logprob(self.plain, made, [*q.context], [*q.continuation]) for q in asked]
            self.close([answer.logprob for answer in answers], wanted, f"Engine {condition}")

    def ask_sweep(self, conditions: list[str], stored: bool) -> None:
        options = {"include_path": str(self.folder), "measure": "both", "progress": False}
        store = str(self.folder / "store") if stored else None
        docs = dl.condition_sweep(self.lens, ["p_choice", "p_writing"], conditions, store=store, **options).docs
        for condition, made in zip(["baseline", *conditions], self.under(conditions), strict=True):
            rows = docs[docs["condition"] == condition]
            for task, metric in (("p_choice", "answer_logprob"), ("p_writing", "exact_match")):
                of_task = rows[(rows["task"] == task) & (rows["metric"] == metric)].sort_values("doc_id")
                for row, asked in zip(of_task.itertuples(), QUESTIONS, strict=True):
                    what, context = f"sweep {task} {condition}", self.ids(asked)
                    if metric == "answer_logprob":
                        wanted = logprob(self.plain, made, context, self.ids(" yes"))
                        self.close(row.value, wanted, what)
                    else:
                        self.same(row.response, written(self.plain, made, context, N_NEW, self.lens.tokenizer), what)


def write_tasks(folder: Any) -> Any:
    """Two tasks over `QUESTIONS`: with options, and to be written."""
    docs = {"test": [{"q": q, "options": ["yes", "no"], "answer": 0} for q in QUESTIONS]}
    mini_tasks.write_task(folder, "p_choice", docs, **mini_tasks.choice())
    mini_tasks.write_task(folder, "p_writing", **mini_tasks.written(until=[], max_gen_toks=N_NEW))
    return folder


def fault(run: Any) -> str | None:
    """What ends a run; None: nothing does."""
    try:
        run()
    except Exception as e:  # noqa: BLE001 - whatever it is
        return f"{type(e).__name__}: {e}"
    return None


def alone(family: str, steps: list[Step], folder: Any) -> str | None:
    """What goes wrong in a program."""
    shutil.rmtree(folder / "store", ignore_errors=True)
    return fault(lambda: Session(family, folder).run(steps))


def in_threads(family: str, first: list[Step], programs: list[list[Step]], folder: Any) -> list[str]:
    """What goes wrong in programs that run at once, after the main thread did some steps, and in its own end."""
    shutil.rmtree(folder / "store", ignore_errors=True)
    main, faults = Session(family, folder), []

    def work(steps: list[Step]) -> None:
        faults.append(fault(lambda: Session(family, folder, main).run(steps)))

    def then() -> None:
        threads = [threading.Thread(target=work, args=(steps,)) for steps in programs]
        for do in (threading.Thread.start, threading.Thread.join):
            for thread in threads:
                do(thread)
        main.ask("model", ["the end"])
        main.ask("next", ["the end"], ["L1.H0[1]"])

    faults.append(fault(lambda: main.run(first, then)))
    return [one for one in faults if one]


def listed(steps: list[Step]) -> str:
    """A step a line."""
    return "".join(f"    {step!r},\n" for step in steps)
