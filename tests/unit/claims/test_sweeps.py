"""Asking a model which claims hold: from as few documents as that takes, in an order that is fixed."""

import numpy as np
import planted_depth
import pytest
from refusals import refused

import depthlens as dl
from depthlens.claims import sweeps
from depthlens.claims.measures import odds
from depthlens.claims.parts import OPEN, SHOWN, STUDY
from depthlens.claims.sweeps import LOOKS, POOL, Sweeps, ask
from depthlens.claims.verdicts import Verdicts

pytestmark = pytest.mark.slow

ROLES = {field: task for field, (task, _, _) in planted_depth.FIELDS.items()}
OPTIONS = {"num_fewshot": 0, "progress": False}
BY_ID = {claim.id: claim for claim in dl.claims.CLAIMS}


@pytest.fixture(scope="module")
def lens():
    return dl.load(planted_depth.organism("C2", true=True, n_layers=9), device="cpu")


@pytest.fixture
def made(lens):
    return Sweeps({"model": lens}, sweeps.roles_of(ROLES), 1, {**OPTIONS, "seed": 0})


def documents(result, task):
    return set(result.docs.loc[result.docs["task"] == task, "doc_id"])


def test_a_claim_is_asked_until_it_is_decided(lens, capsys):
    found = ask(lens, tasks=ROLES, claims=["C7"], **OPTIONS | {"progress": True})
    assert found.states["C7"][STUDY] == SHOWN and found.record["models"] == [lens.name]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("decided")]
    asked = [int(line.split("next C7 with ")[1].split()[0]) for line in lines]
    assert asked == [*LOOKS[: len(asked)]], "it begins with 25 documents and doubles"
    assert found.parts.loc[found.parts["view"] == "decides", "n"].max() <= asked[-1]


def test_a_claim_of_which_a_part_was_not_measured_is_not_counted_as_decided(lens, monkeypatch, capsys):
    """Written letters are shown to need deep layers; worked solutions, which could fail, have no task."""
    monkeypatch.setattr(sweeps, "LOOKS", LOOKS[:2])
    roles = {role: ROLES[role] for role in ("letters", "generation", "continuation", "retrieval", "long_text")}
    found = ask(lens, tasks=roles, claims=["C2", "C3"], **OPTIONS | {"progress": True})
    assert found.parts.query("claim == 'C2' and part == 'a' and view == 'decides'")["state"].item() == SHOWN
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("decided")]
    assert "next C3" in lines[0] and any("next C2" in line for line in lines) and "C2" not in found.decided
    assert all(line.startswith("decided 0 of 2") for line in lines)


def test_a_claim_that_takes_longer_than_is_left_comes_after_all_looks_at_others(lens, monkeypatch, capsys):
    monkeypatch.setattr(Sweeps, "predicted", lambda self, claim, n: (0.0, 1e9 if claim.id == "C1" else float(n)))
    monkeypatch.setattr(sweeps, "LOOKS", LOOKS[:2])
    ask(lens, tasks=ROLES, claims=["C1", "C8"], **OPTIONS | {"progress": True})
    asked = [line.split("next ")[1][:2] for line in capsys.readouterr().out.splitlines() if line.startswith("decided")]
    assert {*asked} == {"C1", "C8"} and asked == sorted(asked, reverse=True)


def test_more_documents_are_those_before_and_others(made):
    few, more = (documents(made.evidence(BY_ID["C1"], n).letters, ROLES["letters"]) for n in LOOKS[:2])
    assert few < more and len(more) == LOOKS[1]
    assert few != {*range(LOOKS[0])}, "they come in random order"
    written = made.evidence(BY_ID["C2"], LOOKS[0]).generation
    assert documents(written, ROLES["generation"]) == few, "protocols ask the same questions"


def test_documents_of_two_sides_are_chosen_to_be_equally_easy(lens):
    roles = sweeps.roles_of({role: ROLES[role] for role in ("continuation", "text")})
    made = Sweeps({"model": lens}, roles, 1, {**OPTIONS, "seed": 0})
    found = made.evidence(BY_ID["C3"], LOOKS[0])
    scores = {}
    for role in ("continuation", "text"):
        (pool,) = (margins.docs for margins in found.margins if ROLES[role] in margins.record["tasks"])
        assert pool["doc_id"].nunique() == min(POOL, pool["doc_id"].max() + 1)
        scores[role] = dict(zip(pool["doc_id"], odds(pool["value"].to_numpy(float)), strict=True))
    ends = np.array([np.quantile([*of.values()], [0.05, 0.95]) for of in scores.values()])
    low, high = ends.max(0)[0], ends.min(0)[1]
    for role, of in scores.items():
        chosen = documents(found.tokens, ROLES[role])
        inside = {doc for doc, x in of.items() if low <= x <= high}
        assert chosen and (chosen <= inside), role


def test_nothing_begins_after_the_time_and_an_interrupted_call_keeps_what_it_has(lens, monkeypatch, capsys):
    none = ask(lens, tasks=ROLES, claims="C1", minutes=0, **OPTIONS)
    assert {*none.states["C1"].values()} == {OPEN} and "not measured in 0 minutes" in none.describe()[-1]
    swept, real = [], sweeps.condition_sweep

    def stopped(*given, **options):
        swept.append(given)
        if len(swept) > 2:
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(sweeps, "condition_sweep", stopped)
    found = ask(lens, tasks=ROLES, claims=["C1", "C2"], **OPTIONS)
    decides = found.parts.query("view == 'decides'").set_index("claim")["effect"]
    assert decides["C1"].notna().all() and decides["C2"].isna().all(), "the first was judged before"
    assert "the same call goes on from there" in capsys.readouterr().out


def test_the_command_writes_a_page_of_verdicts(lens, tmp_path, call):
    tasks = tmp_path / "roles.yaml"
    tasks.write_text("letters: organism_letters\ncontinuation: [organism_knowledge]\n")
    out = tmp_path / "claims"
    asked = ["claims", lens.name, "--tasks", str(tasks), "--only", "C1", "--num-fewshot", "0", "--out", str(out)]
    code, said, _ = call(*asked)
    assert code == 0
    page, saved = (out / "index.html").read_text(), Verdicts.load(out)
    assert saved.headline in said and saved.headline in page and "Song et al." in page
    assert call(*asked[:-1], str(tmp_path / "again"), "--minutes", "0")[0] == 0
    code, _, fault = call("claims", lens.name, "--tasks", "nothing.yaml", "--out", str(out))
    assert code == 2 and "--tasks 'nothing.yaml' cannot be read (FileNotFoundError" in fault


@pytest.mark.parametrize(("options", "said"), [
    ({"tasks": {"letter": "organism_letters"}}, "unknown role of tasks 'letter'"),
    ({"claims": "C9"}, "unknown claim 'C9'"),
    ({"tasks": ["mmlu"]}, "give tasks by role"), ({"minutes": float("nan")}, "minutes nan: give a number, at least 0"),
    ({"limit": 5}, "limit: claims choose their documents and metrics; leave it out"),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused(lens, options, said):
    refused(said, ask, lens, **{"tasks": ROLES, **OPTIONS, **options})
