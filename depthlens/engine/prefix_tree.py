"""Many token sequences as few prefix trees, so that tokens which sequences share are computed once.

A pack is a tree: a *prefix* that all its sequences share (few-shot examples), then *branches* (questions), which may
branch again (answer options). In the flat layout, which starts with the prefix, each token has a parent. It attends to
its ancestors and itself, and its position is its depth, exactly as in a row of its own. Branches never see each other,
so attention is computed as prefix (dense) plus own branch (masked), not as one large masked square.

No torch in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

Tokens = Sequence[int]
LONG = 256  # tokens of a pack from which on its prefix is worth keeping


@dataclass
class Pack:
    """A prefix tree of several sequences, in depth-first order.

    Attributes:
        sequences: Which of the sequences given to `pack` are in this one.
        n_prefix: How many tokens all of them start with; these come first.
        tokens: Token ids of the prefix, then of the branches, the longest first.
        parents: Flat index of each token's parent; -1 for the first of a sequence.
        paths: Per sequence, in order of ``sequences``, the flat index of each of its tokens.
    """

    sequences: list[int]
    n_prefix: int
    tokens: list[int]
    parents: list[int]
    paths: list[list[int]]

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def branches(self) -> list[range]:
        """Flat indices of the tokens of each branch."""
        starts = [i for i, parent in enumerate(self.parents) if parent == self.n_prefix - 1 and i >= self.n_prefix]
        return [range(start, end) for start, end in pairwise([*starts, self.n_tokens])]

    @property
    def depths(self) -> list[int]:
        """Position of each token in its sequence."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return depths


def pack(sequences: Sequence[Tokens], max_tokens: int | Callable[[int], int], extra: int = 0) -> Iterator[Pack]:
    """Group sequences into packs.

    Sequences are taken in lexicographic order, so that those with a common start are neighbours.

    Args:
        sequences: Token ids.
        max_tokens: Largest number of distinct tokens in a pack, or a function of the length of its common prefix that
        says
            so; a longer sequence gets its own pack.
        extra: Tokens that are charged for each sequence, for what it will write.
    """
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))
    group: list[int] = []
    shared = size = 0
    for i in order:
        tokens = sequences[i]
        if group:
            common = common_prefix(sequences[group[-1]], tokens)
            grown = size + len(tokens) - common + extra
            # mixing prefixes turns a long one into a branch, whose attention is a masked square; short ones may mix,
            # since a layer wants many tokens at once
            loses = size >= LONG and shared > len(tokens) // 2 and common < shared // 2
            limit = max_tokens(min(shared, common)) if callable(max_tokens) else max_tokens
            if grown > limit or loses:
                yield build(sequences, group)
                group = []
            else:
                shared, size = min(shared, common), grown
        if not group:
            shared, size = len(tokens), len(tokens) + extra
        group.append(i)
    if group:
        yield build(sequences, group)


def n_distinct(sequences: Sequence[Tokens]) -> int:
    """Tokens of the prefix tree of all sequences."""
    ordered = sorted(sequences, key=tuple)
    shared = sum(common_prefix(a, b) for a, b in pairwise(ordered))
    return sum(map(len, ordered)) - shared


def build(sequences: Sequence[Tokens], group: Sequence[int]) -> Pack:
    """The prefix tree of some of the sequences, in any order."""
    members = [sequences[i] for i in group]
    n_prefix = common_prefix(min(members, key=tuple), max(members, key=tuple))
    branches: dict[tuple[int, ...], list[int]] = {}  # members by their first token after the prefix
    # sorted, those with a common start are neighbours, so that nodes are made in depth-first order
    for i in sorted(range(len(members)), key=lambda i: tuple(members[i])):
        branches.setdefault(tuple(members[i][n_prefix : n_prefix + 1]), []).append(i)
    tokens, parents = list(members[0][:n_prefix]), [*range(-1, n_prefix - 1)]
    nodes: dict[tuple[int, int], int] = {}  # by parent and token
    paths = [[*range(n_prefix)] for _ in members]
    for branch in sorted(branches.values(), key=lambda branch: -n_distinct([members[i] for i in branch])):
        for i in branch:
            parent = n_prefix - 1
            for token in members[i][n_prefix:]:
                node = nodes.setdefault((parent, token), len(tokens))
                if node == len(tokens):  # it is new
                    tokens.append(token)
                    parents.append(parent)
                paths[i].append(node)
                parent = node
    return Pack(list(group), n_prefix, tokens, parents, paths)


def common_prefix(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences start with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
