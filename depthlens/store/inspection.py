"""What a store holds, for people: list it, see what made a part, check it, throw parts away."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from depthlens import arguments
from depthlens.errors import UserError, unknown
from depthlens.store.parts import ADDRESS, Damaged, Part, Store, made

COLUMNS = ["key", "label", "model", "dtype", "device", "backend", "method", "parts", "rows", "bytes", "written"]


def contents(store: Store) -> pd.DataFrame:
    """One row a key and label: what its rows share, how many parts, rows and bytes, and when it was last written.

    A damaged part counts with its bytes and no rows.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for part in store.parts():
        about = store.about(part.key)
        row = rows.setdefault(
            (part.key, part.label),
            {"key": part.key, "label": part.label, "parts": 0, "rows": 0, "bytes": 0, "written": "", "model": "?"}
            | {name: about.get(name, "?") for name in ("dtype", "device", "backend", "method")},
        )
        row["parts"] += 1
        row["bytes"] += part.size
        try:
            table = store.load(part)
        except (Damaged, FileNotFoundError):
            continue
        row["rows"] += table.num_rows
        row["model"] = made(table)["model"]
        row["written"] = max(row["written"], made(table)["time"])
    return pd.DataFrame(rows.values(), columns=COLUMNS)


def details(store: Store, which: str) -> list[dict[str, Any]]:
    """What made the parts of a key, a key/label or one part, each with its conditions and number of requests.

    Args:
        store: The store.
        which: The beginning of a part's path, as `contents` and the records of results name them.

    Raises:
        UserError: nothing begins like that.
    """
    chosen = [part for part in store.parts() if part.path.startswith(which.removeprefix("./"))]
    if not chosen:
        raise unknown("part", which, sorted({f"{p.key}/{p.label}" for p in store.parts()}))
    descriptions = []
    for part in chosen:
        about: dict[str, Any] = {"part": part.path, "bytes": part.size}
        try:
            table = store.load(part)
        except Damaged as e:
            descriptions.append(about | {"damaged": str(e)})
            continue
        conditions = table.column("condition").to_pylist()
        about |= {"rows": table.num_rows, "conditions": list(dict.fromkeys(conditions))}
        about["requests"] = len(set(table.column("request").to_pylist()))
        descriptions.append(about | store.about(part.key) | made(table))
    return descriptions


@dataclass
class Verified:
    """What a check of a store found.

    Attributes:
        n_parts: Parts that are there.
        damaged: A line a damaged part, or file that says what parts share.
        outdated: Parts whose address lacks something that decides answers; they are not read.
    """

    n_parts: int = 0
    damaged: list[str] = field(default_factory=list)
    outdated: int = 0


def verify(store: Store) -> Verified:
    """Check every part; damaged ones are set aside, so that they are computed again."""
    result = Verified()
    abouts: dict[str, dict[str, Any]] = {}
    for part in list(store.parts()):
        if part.key not in abouts:
            abouts[part.key] = store.about(part.key)
            if not abouts[part.key]:
                fix = "it is written again when its model is asked again"
                result.damaged.append(
                    f"{part.key}/about.json: it does not say what the parts in this folder share; {fix}"
                )
        try:
            store.load(part)
        except Damaged as e:
            result.damaged.append(f"{part.path}: {e}; it is now {store.set_aside(part, str(e))}")
        except FileNotFoundError:
            continue  # another process removed it
        result.n_parts += 1
        result.outdated += _outdated(abouts[part.key])
    return result


def _outdated(about: dict[str, Any]) -> bool:
    return bool(about) and about.get("address") != ADDRESS


def prune(
    store: Store,
    *,
    model: str | None = None,
    label: str | None = None,
    older_than: float | None = None,
    outdated: bool = False,
    leftovers: bool = False,
    everything: bool = False,
    dry_run: bool = False,
) -> tuple[list[Part], list[str]]:
    """Delete parts that fit every one of the criteria given.

    Args:
        store: The store.
        model: Name or fingerprint of the model.
        label: Task, or what else was asked.
        older_than: Days since it was made.
        outdated: Only parts whose address lacks something that decides answers, and which are not read.
        leftovers: Delete temporary files of killed processes and what was set aside, instead of parts.
        everything: Delete all parts.
        dry_run: Delete nothing, only say what would be.

    Returns:
        Parts, and leftovers by path.

    Raises:
        UserError: no criterion, or a model or label of which nothing is kept.
    """
    if older_than is not None:
        older_than = arguments.number("older_than", older_than, 0, fix=" of days")
    if not (model or label or older_than is not None or outdated or leftovers or everything):
        raise UserError("nothing to prune is named; give a model, a task, an age, outdated, leftovers or all")
    leftover_files = store.leftovers() if leftovers else []
    chosen: list[Part] = []
    if model or label or older_than is not None or outdated or everything:
        known = list(store.parts())
        names = {part: _names(store, part) for part in known} if model else {}
        if model and model not in (models := set().union(*names.values())):
            raise unknown("model", model, sorted(models))
        if label and label not in (labels := {part.label for part in known}):
            raise unknown("task", label, sorted(labels))
        limit = _ago(older_than) if older_than is not None else None
        chosen = [
            part
            for part in known
            if (not model or model in names[part])
            and (not label or part.label == label)
            and (not outdated or _outdated(store.about(part.key)))
            and (limit is None or _time(store, part) < limit)
        ]
    if not dry_run:
        for path in [*(part.path for part in chosen), *leftover_files]:
            store.files.remove(path)
    return chosen, leftover_files


def _ago(days: float) -> str:
    """The time so many days ago; before the first year of the calendar nothing was made."""
    now = datetime.now(UTC)
    return (now - timedelta(days=min(days, float(now.toordinal() - 1)))).isoformat()


def _names(store: Store, part: Part) -> set[str]:
    """Name and fingerprint of a part's model."""
    names = {store.about(part.key).get("fingerprint", "?")}
    try:
        return names | {made(store.load(part))["model"]}
    except (Damaged, FileNotFoundError):
        return names


def _time(store: Store, part: Part) -> str:
    """When a part was made; a damaged one counts as old."""
    try:
        return made(store.load(part))["time"]
    except (Damaged, FileNotFoundError):
        return ""
