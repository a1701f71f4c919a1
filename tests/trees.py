"""Sequences that share a lot, and which tokens of their prefix trees see which."""

import random

import torch


def random_sequences(seed, n=40):
    """Sequences over four tokens, so that they share a lot; duplicates and prefixes of each other included."""
    rng = random.Random(seed)
    made = [tuple(rng.choices(range(4), k=rng.randint(1, 9))) for _ in range(n)]
    return [(9, 9, *s) for s in made] + [(9, 9, *made[0]), (9, 9)]


def sees(pack):
    """Which tokens of a pack see which, from the paths of its sequences. Shape [query, key]."""
    found = torch.eye(pack.n_tokens, dtype=torch.bool)
    for path in pack.paths:
        for at, node in enumerate(path):
            found[node, path[: at + 1]] = True
    return found
