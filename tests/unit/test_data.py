"""The documents of the embedded tasks: those of the release, generated as committed."""

import hashlib
import runpy

import depthlens as dl
from depthlens.analysis.result.folder import FILES
from depthlens.analysis.show import views
from depthlens.paths import data_dir

DATA = data_dir()
TASKS = DATA / "tasks"

# of all documents and facts, in the order of their paths; a change of one changes numbers of users
SHA256 = "e0ab84843a547b5f3ac5e58c0834198cc559bffec584bd1036054b9ffad9b465"


def test_documents_are_those_of_the_release_and_generated():
    """Numbers of users depend on every letter: who changes one changes the hash, and a line of the changelog."""
    files = sorted([*TASKS.glob("**/*.jsonl"), *(DATA / "facts").iterdir(), *(DATA / "texts").iterdir()])
    assert hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest() == SHA256
    assert runpy.run_path(str(DATA / "generate.py"))["main"](["--check"]) == 0


def test_the_example_is_small_whole_and_of_this_code():
    files = [path for path in (DATA / "examples").rglob("*") if path.is_file()]
    assert {path.name for path in files} <= {*FILES} and sum(path.stat().st_size for path in files) < 1_000_000
    sweep = dl.examples()
    assert sweep.docs.groupby(["task", "metric"])["doc_id"].nunique().eq(60).all()
    assert sweep.record["depthlens"] >= "0.3.0" and len(sweep.record["conditions"]) == 31
    page = (DATA.parent / "docs/pages/what_breaks.html").read_text(encoding="utf-8")
    assert page == views.page(sweep.explore().title, sweep.explore().html()), (
        "the page of the docs is that of the example"
    )
