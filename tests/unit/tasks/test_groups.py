"""A group with a score of its own is one task: pooled as lm-eval pools it, with each document's own task known."""

import mini_tasks
import numpy as np
import pytest
import tiny
from lm_evals import Noting, evaluate

import depthlens as dl
from depthlens.analysis.numbers.means import mean
from depthlens.analysis.result import questions
from depthlens.analysis.result.profiles import by_layer
from depthlens.experiments.sweep import condition_sweep
from depthlens.tasks import harness

SIZES = {"school_art": 5, "school_biology": 9, "school_chess": 7}
N = sum(SIZES.values())
SUBJECT = mini_tasks.choice("{{q}}", "acc", "acc_norm", metadata={"version": 1.5})
WEIGHTED = {"school": ", weight_by_size: true", "school_arts": "", "school_unweighted": ", weight_by_size: false"}
GROUPS = {name: f"aggregate_metric_list: [{{metric: acc{how}}}]" for name, how in WEIGHTED.items()}
GROUPS["school_plain"] = ""
IN_GROUP = {"school": ["school_arts", "school_biology", "school_chess"], "school_arts": ["school_art"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Subjects of several sizes and numbers of options; a group with a group inside, and groups without a score."""
    folder, rng = tmp_path_factory.mktemp("school"), np.random.default_rng(0)
    for i, (name, n) in enumerate(SIZES.items()):
        letters, right = "abcd"[: 2 + i], rng.integers(2 + i, size=n).tolist()
        docs = [{"q": f"{name} {j}: ", "options": [f"{k}{j}" for k in letters], "answer": right[j]} for j in range(n)]
        mini_tasks.write_task(folder, name, {name: docs}, **SUBJECT, test_split=name)
    for name, score in GROUPS.items():
        inside = "\n".join(f"  - {task}" for task in IN_GROUP.get(name, SIZES))
        (folder / f"{name}.yaml").write_text(f"group: {name}\ntask:\n{inside}\n{score}\nmetadata: {{version: 3}}\n")
    return folder


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa")


@pytest.fixture(scope="module")
def sweep(lens, folder):
    return lambda name, **options: condition_sweep(lens, name, "layers", include_path=folder, progress=False, **options)


@pytest.fixture(scope="module")
def result(sweep):
    return sweep("school")


@pytest.mark.parametrize("limit", [None, 6])
def test_pooled_and_subject_scores_are_lm_evals(lens, folder, sweep, limit):
    found = evaluate(Noting(lens), ["school"], folder, limit=limit)
    ours = sweep("school", limit=limit)
    assert list(ours.docs["task"].unique()) == ["school"]
    base = ours.baselines.set_index("metric")
    assert base.loc["acc", "baseline"] == pytest.approx(found["groups"]["school"]["acc,none"])
    assert base.loc["acc", "n"] == sum(min(n, limit or n) for n in SIZES.values())
    by_subject = ours.split("school").baselines
    assert len(by_subject) == 2 * len(SIZES)
    for row in by_subject.itertuples():
        theirs = found["results"][row.task.removeprefix("school, ")]
        assert row.baseline == pytest.approx(theirs[f"{row.metric},none"])
        assert row.n == theirs["sample_len"]


def test_record_has_the_group_and_its_tasks(result):
    about = result.record["tasks"]["school"]
    assert list(result.record["tasks"]) == ["school"]
    assert (about["version"], about["n_docs"], about["output_type"]) == (3, N, "multiple_choice")
    assert list(about["subtasks"]) == list(SIZES) and about["subtasks"]["school_art"]["version"] == 1.5
    # guessing among 2, 3 and 4 options
    chance = sum(n / (2 + i) for i, n in enumerate(SIZES.values())) / N
    assert about["metrics"]["acc"]["chance"] == about["metrics"]["acc"]["floor"] == pytest.approx(chance)


def test_the_unit_is_the_subject_of_many_and_the_question_of_few(result, monkeypatch):
    (profile, _) = by_layer(result)
    assert len({*profile.units}) == N and "school: 3 subjects are too few to stand for others" in result.notes[-1]
    monkeypatch.setattr(questions, "SUBJECTS_AS_UNITS", len(SIZES))
    result = dl.Result(result.docs, result.record, result.asked)
    values = result.scores("school", "acc")["baseline"].to_numpy()
    names = [name for name, n in SIZES.items() for _ in range(n)]
    base = result.baselines.set_index("metric").loc["acc"]
    ends = mean(values, names, limits=(0.0, 1.0), n_questions=N).interval()
    assert [base["ci_low"], base["ci_high"]] == list(map(float, ends))
    (profile, _) = by_layer(result)
    assert profile.units == tuple(names) and profile.mean().n == len(SIZES)


@pytest.mark.parametrize("name", ["school_unweighted", "school_plain"])
def test_groups_without_a_score_over_documents_stand_for_their_tasks(sweep, name):
    result = sweep(name, limit=2)
    assert list(result.docs["task"].unique()) == list(SIZES) and result.questions()["subtask"].isna().all()
    with pytest.raises(dl.UserError, match="task school_art is no group with a score of its own; name one, such"):
        result.split("school_art")


@pytest.mark.parametrize("names", [["school", "school_art"], ["school_chess", "school"], ["school_arts", "school"]])
def test_a_task_in_two_ways_is_refused(folder, names):
    with pytest.raises(dl.UserError, match=r"task school_\w+ is asked for twice, alone or in groups; name it once"):
        harness.load_tasks(names, include_path=folder)


def test_record_has_a_hash_of_what_the_yaml_file_says(lens, tmp_path):
    """Where the documents are does not matter."""
    found = []
    for name, text in (("a", "{{q}}"), ("b", "{{q}}"), ("c", "{{q}}!")):
        folder = tmp_path / name
        mini_tasks.write_task(folder, "own", {"test": mini_tasks.DOCUMENTS}, **mini_tasks.choice(text, "acc"))
        result = condition_sweep(lens, "own", ["L0"], include_path=folder, store=None, progress=False)
        found.append(result.record["tasks"]["own"]["config"])
    assert found[0] == found[1] != found[2]
