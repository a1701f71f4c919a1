"""The first line of a command: what it does, before the seconds that imports and loading take.

On standard error, so that what a command prints can be piped on; with ``--json`` it is a line of JSON like all others.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from depthlens import progress


def say(what: str, **about: Any) -> None:
    """Tell what begins now.

    Args:
        what: In words, as ``"loading smollm2-135m"``.
        about: The same as values, for the line of JSON.
    """
    as_json = os.environ.get(progress.ENVIRONMENT) == "-"
    print(json.dumps({"status": what, **about}) if as_json else f"{what} ...", file=sys.stderr, flush=True)
