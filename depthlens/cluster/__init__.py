"""Workers of Ray: actors that hold the model and compute shards (`depthlens.engine.engine`) for an engine.

`options` says which workers an option, the command line or the environment asks for, and `pool` has them. Ray is
imported when workers are asked for, and not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from depthlens.cluster.options import asked


def workers_of(options: Mapping[str, Any]) -> Any:
    """The workers that options or the environment ask for, connected; None: this process computes.

    Returns:
        A `depthlens.cluster.pool.Workers`, whose module is imported only now.

    Raises:
        UserError: Ray is not installed, cannot be started or reached, or has no room for so many.
    """
    wanted = asked(options)
    if wanted is None:
        return None
    from depthlens.cluster import pool  # imports torch

    return pool.connected(wanted)
