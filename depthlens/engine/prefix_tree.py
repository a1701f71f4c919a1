"""Many token sequences as few prefix trees, so that tokens which sequences share are computed once.

A pack is a tree: a *prefix* that all its sequences share (few-shot examples), then *branches* (questions), which may
branch again (answer options). In the flat layout, which starts with the prefix, each token has a parent. It attends to
its ancestors and itself, and its position is its depth, exactly as in a row of its own. Branches never see each other,
so attention is computed as prefix (dense) plus own branch (masked), not as one large masked square.

No torch in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

Tokens = Sequence[int]
LONG = 256  # tokens of a pack from which on its prefix is worth keeping


@dataclass
class Branch:
    """A subtree below the prefix, in depth-first order.

    Attributes:
        tokens: Token ids.
        depths: Position of each token in its sequence.
        parents: Index in this branch of each token's parent; -1 where that is the end of the prefix.
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)


@dataclass
class Pack:
    """A prefix tree of several sequences.

    Attributes:
        sequences: Which of the sequences given to `pack` are in this one.
        prefix: Tokens that all of them start with.
        branches: What follows, longest first.
        paths: Per sequence, in order of ``sequences``, the flat index of each of its tokens (prefix first, then the
            branches one after another).
    """

    sequences: list[int]
    prefix: list[int]
    branches: list[Branch]
    paths: list[list[int]]

    @property
    def n_tokens(self) -> int:
        return len(self.prefix) + sum(len(b.tokens) for b in self.branches)

    @property
    def tokens(self) -> list[int]:
        return self.prefix + [t for b in self.branches for t in b.tokens]

    @property
    def depths(self) -> list[int]:
        return [*range(len(self.prefix)), *(d for b in self.branches for d in b.depths)]

    @property
    def exits(self) -> list[int]:
        """The flat index at which the subtree of each token ends.

        Tokens stand in depth-first order, so that token j is i or one of its ancestors if and only if
        ``j <= i < exits[j]`` (the intervals of an Euler tour).
        """
        exits = [self.n_tokens] * len(self.prefix)
        for branch in self.branches:
            start = len(exits)
            ends = [*range(start + 1, start + 1 + len(branch.tokens))]
            for node in reversed(range(len(ends))):
                if (parent := branch.parents[node]) >= 0:
                    ends[parent] = max(ends[parent], ends[node])
            exits += ends
        return exits


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
    roots: dict[int, Branch] = {}  # by their first token
    nodes: dict[tuple[int, int, int], int] = {}  # index in its branch, by first token of the branch, parent and token
    places: list[list[tuple[int, int]]] = [[] for _ in members]  # first token of the branch and index in it
    # sorted, those with a common start are neighbours, so that nodes are made in depth-first order
    for i in sorted(range(len(members)), key=lambda i: tuple(members[i])):
        tokens, place = members[i], places[i]
        if len(tokens) > n_prefix:
            root, parent = tokens[n_prefix], -1
            branch = roots.setdefault(root, Branch())
            for depth, token in enumerate(tokens[n_prefix:], start=n_prefix):
                node = nodes.setdefault((root, parent, token), len(branch.tokens))
                if node == len(branch.tokens):  # it is new
                    branch.tokens.append(token)
                    branch.depths.append(depth)
                    branch.parents.append(parent)
                place.append((root, node))
                parent = node
    ordered = sorted(roots.items(), key=lambda item: -len(item[1].tokens))
    sizes = [len(branch.tokens) for _, branch in ordered]
    starts = dict(zip((root for root, _ in ordered), accumulate(sizes, initial=n_prefix), strict=False))
    paths = [[*range(n_prefix), *(starts[root] + node for root, node in place)] for place in places]
    return Pack(list(group), list(members[0][:n_prefix]), [branch for _, branch in ordered], paths)


def common_prefix(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences start with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
