"""Verdicts on synthetic sweeps: from results with their views and seeds to sentences, tables and the scorecard."""

import html
from dataclasses import replace

import made_results
import numpy as np
import pandas as pd
import planted_depth
import pytest
from made_results import FEW, FLAT, viewed

import depthlens as dl
from depthlens.claims import CLAIMS, Evidence, headline, judge
from depthlens.claims.decision import DEEPER_LAYERS, MEAN, SPARED
from depthlens.claims.verdicts import VERDICTS, Verdicts, combined
from depthlens.errors import UserError
from depthlens.plots.claims import CHIPS, scorecard

pytestmark = pytest.mark.slow

N_BOOT = 200
EARLY, LATE = (np.where((np.arange(12) < 4) == early, 0.5, 0.03) for early in (True, False))


def verdict(claim, **evidence):
    (found,) = judge(Evidence(**evidence), claims=claim, n_boot=N_BOOT)
    return found


def facts(loss=FEW, **options):
    return {
        "letters": viewed(loss, "letters", n=150, **options),
        "continuation": viewed(loss, "facts", n=150, **options),
    }


def test_a_claim_that_holds_in_every_view_and_seed_is_supported():
    found = verdict("C1", **facts())
    assert found.verdict == "supported", found.sentence
    assert not found.fails and len(found.holds) == 4
    rivals = found.parts[1]
    assert len(rivals.others) == 2, "12 layers have no first tenth without L0 and L1, so that view has no meaning"
    assert found.n == 150 and found.seeds == 3 and "\n" not in found.sentence
    assert found.sentence.startswith("C1 supported: ")


def test_what_passes_in_too_few_views_or_seeds_is_undecided_and_says_so():
    one = verdict("C1", **facts(seeds=1))
    assert one.verdict == "undecided" and "every test passes, but 3 few-shot seeds are missing" in one.sentence
    bare = verdict("C1", **facts(views=("",)))
    assert bare.verdict == "undecided" and f"the view {SPARED.name}" in bare.sentence
    assert f"the view {MEAN.name}" in bare.sentence and MEAN.name in bare.fails


def test_a_view_that_disagrees_takes_a_verdict_away_and_is_named():
    early, late = EARLY * 0.6, LATE * 0.6
    every = verdict("C3", **shallow((early, early, early)))
    assert every.verdict == "supported", every.sentence
    assert set(every.holds) == {DEEPER_LAYERS.name, "all layers", SPARED.name, MEAN.name}
    other = verdict("C3", **shallow((early, early, late)))
    assert other.verdict == "undecided" and other.fails == (MEAN.name,)
    assert f"with {MEAN.name}" in other.sentence


def shallow(loss, n=250):
    text = viewed(np.full(12, 0.25), "text", n=n)
    own = {"continuation": viewed(loss, "facts", n=n), "retrieval": viewed(loss, "kv", n=n)}
    return {**own, "text": text, "long_text": text, "tokens": together(text, *own.values())}


def together(*tasks):
    """Sweeps of several tasks as one a few-shot seed."""
    return [dl.concat(list(of_seed)) for of_seed in zip(*tasks, strict=True)]


def test_a_claim_that_fails_is_contradicted():
    assert verdict("C1", **facts(FLAT)).verdict == "contradicted"
    assert verdict("C3", **shallow((LATE, LATE, LATE))).verdict == "contradicted"


def test_missing_evidence_says_what_to_run():
    found = judge(Evidence(), n_boot=N_BOOT)
    assert [v.claim.id for v in found] == [f"C{i}" for i in range(1, 8)] == [c.id for c in CLAIMS]
    assert {v.verdict for v in found} == {"cannot judge"}
    for v in found:
        assert v.effect is v.ci_low is v.ci_high is v.needed is None and v.n == 0
        assert all(f"({field}=)" in v.sentence for field in v.claim.needs)
    one = verdict("C2", letters=viewed(FEW))
    assert "(generation=)" in one.sentence and "(letters=)" not in one.sentence
    counts = "0 of 7 claims supported, 0 contradicted, 0 undecided, 7 cannot be judged (7 of them not measured)."
    assert headline(found) == counts


def test_some_claims_are_judged_alone():
    evidence = Evidence(**facts())
    every = judge(evidence, n_boot=N_BOOT)
    assert verdict("C1", **facts()).sentence == every[0].sentence
    two = judge(evidence, claims=["C7", "C1"], n_boot=N_BOOT)
    assert [v.claim.id for v in two] == ["C1", "C7"] and two.describe()[0].startswith("1 of 2 claims supported")


def asking(sweeps, what):
    """Sweeps that say which documents they ask: those of ``what``."""
    found = []
    for sweep in sweeps:
        rows = sweep.docs[["task", "doc_id"]].drop_duplicates()
        hashes = [f"{what} {i}" for i in rows["doc_id"]]
        found.append(replace(sweep, asked=rows.assign(question=what, reference="", choices=None, doc_hash=hashes)))
    return found


def test_a_task_that_is_at_chance_under_one_protocol_is_left_out_of_both():
    """Else the difference of protocols would be one between tasks."""

    def sweeps(name, what, loss, **options):
        return asking(viewed(loss, name, n=150, **options), what)

    letters = sweeps("capitals", "capitals", FEW), sweeps("elements", "elements", FEW, accuracy=0.25)
    written = sweeps("capitals_w", "capitals", FEW), sweeps("elements_w", "elements", LATE)
    found = verdict("C2", letters=together(*letters), generation=together(*written))
    alone = verdict("C2", letters=letters[0], generation=written[0])
    assert [p.main.effect for p in found.parts] == [p.main.effect for p in alone.parts]
    assert found.tasks == ("capitals_w acc", "capitals acc")
    assert "elements_w: its documents can be used on one side of the difference only" in found.sentence
    apart = verdict("C2", letters=letters[0], generation=written[1])
    assert apart.verdict == "cannot judge" and "capitals: its documents" in apart.sentence


def test_a_control_of_another_length_keeps_a_claim_from_support():
    roles = {"reasoning": (LATE, "sums"), "reasoning_choice": (LATE, "choice"), "copying": (EARLY, "copies")}
    evidence = shallow((EARLY,) * 3, n=40) | {role: viewed(*role_of) for role, role_of in roles.items()}

    def missing(reference):
        """Both roles are selected from one sweep, as `dl.claim_sweeps` has them."""
        of_both = together(*(asking(evidence[field], field) for field in ("reasoning", "copying")))
        for s in of_both:
            s.asked.loc[s.asked["task"] == "sums", "reference"] = "x" * 90
            s.asked.loc[s.asked["task"] == "copies", "reference"] = reference
        tasks = {"reasoning": "sums", "copying": "copies"}
        of_role = {field: [s.select(tasks=task) for s in of_both] for field, task in tasks.items()}
        return verdict("C4", **evidence | of_role).parts[0].missing

    assert missing("x" * 60) == ()
    (lacks,) = missing("x" * 40)
    assert lacks == "a control as long as reasoning (its references have 90 characters, those of copying 40)"


def test_a_task_of_too_few_documents_does_not_make_the_others_few():
    both = {"letters": viewed(EARLY, "good", n=60), "continuation": viewed(EARLY, "short", n=5, accuracy=1.0)}
    found = verdict("C7", **both)
    assert found.n == 60 and found.tasks == ("good acc",) and "left out: short: 5 documents" in found.sentence


def test_likelihoods_of_a_task_that_the_model_cannot_do_say_nothing():
    """Nats have no chance level, so the accuracy of the same task guards them."""
    rng = np.random.default_rng(0)

    def nats(task):
        sweeps = []
        for sweep in viewed(LATE, task):
            docs = sweep.docs.assign(metric="token_logprob", value=lambda d: d["value"] - rng.random(len(d)))
            info = {"metrics": {"token_logprob": {"higher_is_better": True, "chance": None}}}
            sweeps.append(type(sweep)(docs, sweep.record | {"tasks": {task: info}}))
        return sweeps

    evidence = {
        "continuation": viewed(EARLY, "facts"),
        "reasoning": viewed(LATE, "sums"),
        "copying": viewed(EARLY, "copies"),
        "tokens": together(nats("facts"), nats("choice")),
    }
    able = verdict("C4", reasoning_choice=viewed(LATE, "choice"), **evidence)
    unable = verdict("C4", reasoning_choice=viewed(LATE, "choice", accuracy=0.25), **evidence)
    assert np.isfinite(able.parts[1].main.effect)
    assert unable.verdict == "cannot judge" and "is at chance" in unable.parts[1].main.why


def test_numbers_are_seeded_and_make_a_table():
    evidence = Evidence(**facts(FLAT))
    first, again, other = (judge(evidence, seed=s, n_boot=N_BOOT) for s in (1, 1, 2))
    a, b, c = (x.table for x in (first, again, other))
    pd.testing.assert_frame_equal(a, b)
    assert not first.parts["ci_low"].equals(other.parts["ci_low"])
    assert list(a["claim"]) == [f"C{i}" for i in range(1, 8)] == list(c["claim"])
    assert np.isnan(a["effect"][1]) and a["effect"].dtype == float and str(a["needed"].dtype) == "Int64"
    rows = first.parts[first.parts["claim"] == "C1"]
    assert set(rows["part"]) == set("abcd") and (rows["ci_low"] <= rows["ci_high"]).all()


def test_the_worst_part_decides():
    parts = judge(Evidence(**facts()), claims="C1", n_boot=N_BOOT)[0].parts
    assert combined(parts) == "supported"
    worse = replace(parts[0], main=replace(parts[0].main, low=-2.0, high=-1.0, effect=-1.5), others=())
    assert combined([worse, *parts[1:]]) == "contradicted"


def test_evidence_that_does_not_fit_is_refused_or_cannot_be_judged():
    with pytest.raises(UserError, match="models m, other"):
        Evidence(letters=viewed(FLAT), generation=viewed(FLAT, model="other"))
    blocks = made_results.sweep({f"L{i}-{i + 1}": 0.0 for i in range(8)}, chance=0.25)
    found = verdict("C1", letters=blocks, continuation=blocks)
    assert found.verdict == "cannot judge" and "sweep layers" in found.sentence


def test_the_scorecard_reads_without_colour():
    found = judge(Evidence(**facts(), text=viewed(FLAT, "text")), n_boot=N_BOOT)
    figure = scorecard(found)
    figure.draw_without_rendering()
    texts = [t.get_text() for ax in figure.axes for t in ax.texts]
    for v in found:
        assert v.claim.id in texts and f"{CHIPS[v.verdict][0]} {v.verdict}" in texts
    judged = [v for v in found if v.effect is not None]
    assert sum("holds in" in text for text in texts) == len(judged)
    lines = [line for ax in figure.axes for line in ax.get_lines()]
    assert [line.get_xdata()[0] for line in lines if line.get_gid() == "threshold"] == [v.threshold for v in judged]
    intervals = [tuple(line.get_xdata()) for line in lines if line.get_gid() == "interval"]
    assert intervals == [(v.ci_low, v.ci_high) for v in judged]
    assert len({symbol for symbol, *_ in CHIPS.values()}) == len(CHIPS) == len(VERDICTS)
    assert " ".join(figure.get_suptitle().split()) == f"m: {headline(found)}"


def test_the_table_of_verdicts_has_a_chip_a_bar_and_an_anchor_for_each_claim():
    verdicts = Verdicts([verdict("C1", **facts()), verdict("C6")])
    page = verdicts._repr_html_()
    assert page.count('class="chip"') == 2 and "✓ supported" in page and "– cannot judge" in page
    assert page.count("<svg") == 1 and "no estimate" in page and "<small title=" in page, "C6 was not measured"
    assert 'id="C1"' in page and 'href="#C6"' in page and headline(verdicts) in page
    first = verdicts[0]
    assert f"{first.effect:.2f} [{first.ci_low:.2f}, {first.ci_high:.2f}]" in page
    assert f"<small>{html.escape(first.what)}</small>" in page
    text = repr(verdicts)
    assert text.startswith(headline(verdicts)) and repr(first) == first.sentence and len(text.splitlines()) == 3 + 2


def test_views_and_seeds_that_were_not_measured_are_told_and_not_counted_as_failures():
    whole = {name: [seeds[0].select(conditions=[f"L{i}" for i in range(12)])] for name, seeds in facts().items()}
    found = judge(Evidence(**whole), n_boot=N_BOOT)
    first = next(v for v in found if v.claim.id == "C1")
    assert first.under == "2 of 2 views; not swept: first token spared, mean ablation" and len(first.swept) == 2
    told = "None could be supported without the view first token spared, the view mean ablation and 3 few-shot seeds."
    assert headline(found).endswith(told)
    assert "holds in 2\nof 2 views" in [t.get_text()[-21:] for ax in scorecard(found).axes for t in ax.texts]


@pytest.mark.slow
@pytest.mark.parametrize("true", [pytest.param(True, marks=pytest.mark.nightly), False])
def test_a_claim_is_supported_where_it_was_planted_and_contradicted_where_it_was_not(true):
    """Of the claim that needs the fewest sweeps, with the fewest documents that its verdict needs."""
    (found,) = judge(planted_depth.evidence("C2", true=true, seed=1, limit=30), claims="C2")
    assert found.verdict == ("supported" if true else "contradicted"), found.sentence
