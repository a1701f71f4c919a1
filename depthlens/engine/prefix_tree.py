"""Many token sequences as few prefix trees, so that tokens which sequences share are computed once.

A pack is a tree: a *prefix* that all its sequences share (few-shot examples), then *branches* (questions), which may
branch again (answer options). Laid out flat, prefix first, each token knows its parent; it attends to its
ancestors and itself, and its position is its depth, exactly as in a row of its own. Branches never see each other,
so attention is computed as prefix (dense) plus own branch (masked), not as one large masked square.

No torch in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

Tokens = Sequence[int]
LONG = 256  # tokens of a pack from which on its prefix is worth keeping


@dataclass
class Branch:
    """A subtree below the prefix, in depth-first order.

    Attributes:
        tokens: Token ids.
        depths: Position of each token in its sequence.
        parents: Index in this branch of each token's parent; -1 where it hangs on the prefix.
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


def pack(sequences: Sequence[Tokens], max_tokens: int | Callable[[int], int], extra: int = 0) -> Iterator[Pack]:
    """Group sequences into packs.

    Sequences are taken in lexicographic order, so that those with a common start lie side by side.

    Args:
        sequences: Token ids.
        max_tokens: Distinct tokens of a pack at the most, or a function of the length of its common prefix that says
            so; a longer sequence gets its own pack.
        extra: Tokens that are charged for each sequence, for what it will write.
    """
    limit = max_tokens if callable(max_tokens) else lambda prefix: max_tokens
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
            if grown > limit(min(shared, common)) or loses:
                yield build(sequences, group)
                group = []
            else:
                shared, size = min(shared, common), grown
        if not group:
            shared, size = len(tokens), len(tokens) + extra
        group.append(i)
    if group:
        yield build(sequences, group)


def build(sequences: Sequence[Tokens], group: Sequence[int]) -> Pack:
    """The prefix tree of some of the sequences."""
    members = [sequences[i] for i in group]
    n_prefix = common_prefix(min(members, key=tuple), max(members, key=tuple))
    branches: list[Branch] = []
    at_root: dict[int, Branch] = {}
    children: dict[tuple[int, int, int], int] = {}
    places: list[list[tuple[Branch, int]]] = []
    for tokens in members:
        place: list[tuple[Branch, int]] = []
        branch, parent = None, -1
        for depth in range(n_prefix, len(tokens)):
            token = tokens[depth]
            if branch is None:
                if token not in at_root:
                    at_root[token] = Branch()
                    branches.append(at_root[token])
                branch = at_root[token]
            key = (id(branch), parent, token)
            if key not in children:
                children[key] = len(branch.tokens)
                branch.tokens.append(token)
                branch.depths.append(depth)
                branch.parents.append(parent)
            parent = children[key]
            place.append((branch, parent))
        places.append(place)
    branches.sort(key=lambda b: -len(b.tokens))
    starts, at = {}, n_prefix
    for branch in branches:
        starts[id(branch)] = at
        at += len(branch.tokens)
    paths = [[*range(n_prefix), *(starts[id(b)] + i for b, i in place)] for place in places]
    return Pack(list(group), list(members[0][:n_prefix]), branches, paths)


def common_prefix(one: Tokens, other: Tokens) -> int:
    """How many tokens two sequences start with in common."""
    n = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        n += 1
    return n
