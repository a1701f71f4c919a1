"""Settings that every test needs before anything is imported."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["DEPTHLENS_STORE"] = "none"  # what a test computes is computed, not read from an earlier run
if "HF_DATASETS_CACHE" not in os.environ:  # made-up documents must not stay where a user's are; workers inherit it
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="depthlens-datasets-")
    atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
if "PYTEST_XDIST_WORKER" in os.environ:  # several threads in each process wait for one another
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import jaxtyping
import pytest
import surgery
import tiny
import torch.utils.collect_env
import transplants

from depthlens import cli, progress

torch.utils.collect_env.get_pretty_env_info = str  # at every evaluation lm-eval would ask pip and others for seconds
CORES = torch.get_num_threads()


@pytest.fixture(autouse=True)
def threads(request):
    """One thread for tiny models: more only wait for each other."""
    torch.set_num_threads(CORES if request.node.get_closest_marker("integration") else 1)


@pytest.fixture(scope="module")
def unchecked():
    """The type checker of `make test-all` is off: no user has one, and workers have none."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module")
def lens():
    """A tiny model that reads long prompts."""
    return tiny.lens("llama-gqa", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of tiny models, each written once; a moved one is the distilled model of the other."""
    root = tmp_path_factory.mktemp("models")

    def folder(family="llama-gqa", moved=False, **changes):
        place = root / "-".join(map(str, (family, moved, *changes.values())))
        if not place.exists():
            base = surgery.rough_lens(family, **changes)
            tiny.save(place, transplants.other(base) if moved else base)
        return str(place)

    return folder


@pytest.fixture(scope="module")
def hubs_data(tmp_path_factory):
    """Handwritten documents stand where the hub's data sets are looked for."""
    import hub  # slow to import

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(hub.write(tmp_path_factory.mktemp("hub")))
        yield


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of converted models."""
    monkeypatch.setenv("DEPTHLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bar_states(monkeypatch):
    """Every state of every bar from now on: rows done, and of how many."""
    states = []
    monkeypatch.setattr(progress, "EVERY", 0)
    monkeypatch.setattr(progress.Bar, "display", lambda bar, *args, **options: states.append((bar.n, bar.total)))
    return states


@pytest.fixture
def call(capsys):
    """Run the command line in this process: its exit code, standard output and standard error."""

    def run(*typed: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([*map(str, typed)])
        return ended.value.code, *capsys.readouterr()

    return run
