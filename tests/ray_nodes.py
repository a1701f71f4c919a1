"""A Ray cluster of several nodes on this machine, each with one CPU, and what a test does to it."""

import os
import signal
import socket
import time
from typing import Any

import psutil

PORTS = ("metrics_agent", "metrics_export", "runtime_env_agent", "dashboard_agent_listen")
TRIES = 4  # where tests of other processes keep both cores busy, a node may take too long to start


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]


def title(process: psutil.Process) -> str:
    """What a process calls itself; nothing for one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


class Nodes:
    """Nodes of one CPU; the first is the head.

    Args:
        n: How many.
    """

    def __init__(self, n: int) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self.ray = ray

        self.cluster = Cluster(shutdown_at_exit=True)
        self.nodes = [self.add() for _ in range(n)]
        self.address = self.cluster.address

    def add(self) -> Any:
        """One more node."""
        for tried in range(TRIES):
            # with ports of its own a node waits for fewer of its helpers
            ports = {f"{name}_port": free_port() for name in PORTS}
            quiet = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
            try:
                return self.cluster.add_node(num_cpus=1, object_store_memory=100 << 20, **ports, **quiet)
            except Exception:
                if tried + 1 == TRIES:
                    raise
                if self.cluster.head_node is None:
                    self.cluster.shutdown()

    def pids(self, node: Any) -> list[int]:
        """Processes of a node's workers that hold an actor."""
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [p.pid for p in raylet.children(recursive=True) if "ray::Worker" in title(p)]

    def kill_worker(self, node: Any) -> None:
        """SIGKILL for an actor of a node."""
        for pid in self.pids(node):
            os.kill(pid, signal.SIGKILL)

    def kill_node(self, node: Any) -> None:
        """SIGKILL for a node's raylet, with which its workers end."""
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def close(self) -> None:
        self.ray.shutdown()
        self.cluster.shutdown()


def wait_for(happens: Any, seconds: float = 120.0) -> None:
    """Until something is true."""
    start = time.monotonic()
    while not happens():
        assert time.monotonic() - start < seconds, "it does not happen"
        time.sleep(0.01)
