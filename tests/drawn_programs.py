"""Programs of a user, drawn at random, as lists of steps: see `user_programs`."""

import itertools
import random
from collections.abc import Sequence
from typing import Any

import depthlens as dl

OF_LAYER = ("q", "o", "down")  # of a layer the projections whose weights are edited
HOOKED = ["", "model", "embed", "norm", "lm_head"]
HOOKED += [f"L{i}{part}" for i in range(4) for part in ("", ".attn", ".mlp", ".norm")]
EDITS = ["hook", "unhook", "strength", "weight", "set", "mode"]
KINDS = ["next", "next", "generate", "generate", "lens", "score", "sweep", "sweep"]
RAW = ["model", "model", "hf"]
Step = tuple[Any, ...]


def text(chance: random.Random, n: int) -> str:
    return "".join(chance.choices("abcdefghij ", k=n - 1)) + chance.choice("xyz")


def condition(chance: random.Random, taken: set[tuple[int, str]]) -> str:
    """Some condition that does not act where a hook is."""
    while True:
        parts = []
        for _ in range(chance.choice((1, 1, 2))):
            layer, k = chance.randrange(4), chance.choice((1, 3, 7, 14, 25))
            part = chance.choice(("", "", ".attn", ".mlp", f".H{chance.randrange(4)}", f".KV{chance.randrange(2)}"))
            where = chance.choice(("", "", f"[{k}:]", f"[{k}]", f"[{k}:{k + 9}]"))
            parts.append(f"L{layer}{part}{where}" + ("@noise" if not part and chance.random() < 0.2 else ""))
        try:
            found = dl.parse_condition("+".join(parts))
        except dl.UserError:  # one part twice
            continue
        if not {(a.layer, a.site) for a in found.ablations} & taken:
            return str(found)


def question(chance: random.Random, taken: set[tuple[int, str]], raw: bool) -> Step:
    """Something to ask; ``raw``: of ``lens.model`` by itself, too."""
    kind = chance.choice(KINDS + RAW * raw)
    under = [*dict.fromkeys(condition(chance, taken) for _ in range(chance.choice((1, 2))))]
    prompts = [text(chance, chance.choice((5, 12, 20, 40))) for _ in range(2)]
    if kind == "model":
        n = min(map(len, prompts))
        return "ask", kind, [p[:n] for p in prompts[: chance.choice((1, 1, 2))]]
    if kind == "sweep":
        return "ask", kind, under, chance.choice((True, True, False))
    return "ask", kind, prompts, under


def hook_site(name: str) -> set[tuple[int, str]]:
    """Layer and site of a hook, if it is on the output of what conditions remove."""
    layer, _, part = name.partition(".")
    return {(int(layer[1:]), part or "layer")} if name.startswith("L") and part != "norm" else set()


def program(chance: random.Random, *, edits=True, asks=True, standing: Sequence[str] = ()) -> list[Step]:
    """Some steps.

    Args:
        chance: What decides.
        edits: Without them only what is a thread's own: contexts and questions; none to ``lens.model`` itself outside
            of all contexts, which nothing keeps from running in the middle of what another thread asks of the package.
        asks: Without them contexts and hooks stay at the end.
        standing: Where hooks are already.
    """
    steps: list[Step] = []
    inside: dict[int, str] = {}
    hooks: dict[int, str] = {}
    numbers = itertools.count()

    def taken() -> set[tuple[int, str]]:
        return set().union(*map(hook_site, (*standing, *hooks.values())))

    for _ in range(chance.randrange(5, 12)):
        kind = chance.choice(["enter", "enter", "leave", *(EDITS * edits)])
        if kind == "enter":
            inside[n := next(numbers)] = condition(chance, taken())
            steps.append(("enter", n, inside[n]))
        elif kind == "leave" and inside:
            steps.append(("leave", n := chance.choice([*inside])))
            del inside[n]
        elif kind == "hook":
            acts = {(a.layer, a.site) for c in inside.values() for a in dl.parse_condition(c).ablations}
            name = chance.choice([name for name in HOOKED if not hook_site(name) & acts])
            hooks[n := next(numbers)] = name
            kind = chance.choice(("steer", "late", "length", "rows"))
            steps.append(("hook", n, name, kind, chance.choice((0.5, 1.0)), chance.randrange(99)))
        elif kind in ("unhook", "strength") and hooks:
            n = chance.choice([*hooks])
            steps.append((kind, n, *([chance.choice((-1.0, 2.0))] if kind == "strength" else [])))
            if kind == "unhook":
                del hooks[n]
        elif kind == "weight":
            name = chance.choice(["embed", "norm", "lm_head", *(f"L{chance.randrange(4)}.{p}" for p in OF_LAYER)])
            how = chance.choice(("in place", ".data", "replaced", *(["module"] if name.startswith("L") else [])))
            steps.append(("weight", name, how, chance.choice((0.5, 1.5))))
        elif kind == "set":
            part = chance.choice((".attn", ".norm"))
            form = chance.choice(("float", "np.float32", "tensor"))
            steps.append(("set", f"L{chance.randrange(4)}{part}", form, chance.choice((0.3, 2.0, 3.0))))
        elif kind == "mode":
            steps.append(("mode", chance.random() < 0.5))
        if asks and chance.random() < 0.5:
            steps.append(question(chance, taken(), edits or bool(inside)))
    if asks:
        steps.append(question(chance, taken(), edits or bool(inside)))
        steps += [("leave", n) for n in chance.sample([*inside], len(inside))]
        steps += [("unhook", n) for n in hooks]
        hooks.clear()
        steps += [("ask", "model", [text(chance, 20)])] * edits
        steps.append(("ask", "next", [text(chance, 20)], [condition(chance, taken())]))
    return steps
