"""The store: nothing computed twice, nothing lost, nothing damaged believed."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pandas as pd
import pytest
import tiny
import torch

import depthlens as dl
from depthlens import (
    attribution,
    cli,
    distill,
    engine,
    kept,
    provenance,
    references,
    result_attention,
    store,
    store_view,
    wavefront,
)
from depthlens import geometry as geometry_module
from depthlens.errors import Interrupted, UserError
from depthlens.requests import Loglikelihood
from depthlens.reservations import Reservations
from depthlens.results import Result
from depthlens.store import Store, open_store

CHOICE, WRITTEN = "capitals_continuation", "kv_retrieval_4"
LIMIT = 3


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def alone(lens) -> Result:
    return run(lens, None)


@pytest.fixture
def small_packs(monkeypatch):
    """So that a sweep has several packs."""
    monkeypatch.setattr("depthlens.budget.CPU_STATE_BYTES", 1 << 14)
    monkeypatch.setattr("depthlens.budget.CPU_KEY_BYTES", 1 << 20)


def run(lens, where, ablate="layers", tasks=(CHOICE, WRITTEN), limit=LIMIT, **options) -> Result:
    where = where if where is None else str(where)
    return dl.condition_sweep(lens, list(tasks), ablate, limit=limit, store=where, progress=False, **options)


def counts(result: Result) -> tuple[int, int]:
    return result.record["store"]["rows_read"], result.record["store"]["rows_computed"]


def parts(where: Path) -> list[Path]:
    return sorted(where.glob("*/*/*.parquet"))


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


class TestNothingIsComputedTwice:
    def test_a_second_sweep_reads_everything_and_is_the_first(self, lens, alone, tmp_path, monkeypatch):
        first = run(lens, tmp_path / "s")
        assert first.docs.equals(alone.docs)
        n_rows = counts(first)[1]
        assert counts(first)[0] == 0 and n_rows == 6 * LIMIT * (4 + 1)  # four options, and a text

        def computed(*args, **kwargs):
            raise AssertionError("computed")

        monkeypatch.setattr(engine.Engine, "_giving_way", computed)
        second = run(lens, tmp_path / "s")
        assert second.docs.equals(alone.docs) and counts(second) == (n_rows, 0)
        pd.testing.assert_frame_equal(second.summary, alone.summary)

    def test_more_documents_conditions_or_measures_compute_what_is_missing(self, lens, tmp_path):
        run(lens, tmp_path, tasks=[CHOICE])
        more = run(lens, tmp_path, tasks=[CHOICE], limit=LIMIT + 2)
        assert counts(more) == (6 * LIMIT * 4, 6 * 2 * 4)
        assert more.docs.equals(run(lens, None, tasks=[CHOICE], limit=LIMIT + 2).docs)
        heads = run(lens, tmp_path, ["L1.H0", "L3", "L0-1"], tasks=[CHOICE])
        assert counts(heads) == (2 * LIMIT * 4, 2 * LIMIT * 4)  # the baseline and L3 were there
        assert counts(run(lens, tmp_path, tasks=[CHOICE], limit=1)) == (6 * 4, 0)
        # the likelihood of the correct option is among the options' likelihoods
        assert counts(run(lens, tmp_path, tasks=[CHOICE], measure="answer_logprob")) == (6 * LIMIT, 0)
        assert counts(run(lens, tmp_path, tasks=[CHOICE], num_fewshot=0)) == (0, 6 * LIMIT * 4)

    @pytest.mark.parametrize("backend", ["torch", "nnsight"])
    def test_every_backend_keeps_its_own(self, lens, tmp_path, backend, monkeypatch):
        monkeypatch.setattr("depthlens.engine.KEEP_BATCHES", 1)
        run(lens, tmp_path, tasks=[CHOICE], backend="torch" if backend == "nnsight" else "nnsight")
        first = run(lens, tmp_path, backend=backend, tasks=[CHOICE])
        assert counts(first) == (0, 6 * LIMIT * 4)
        second = run(lens, tmp_path, backend=backend, tasks=[CHOICE])
        assert counts(second) == (6 * LIMIT * 4, 0) and second.docs.equals(first.docs)

    def test_plain_rows_are_kept_every_few_batches(self, lens, tmp_path, monkeypatch):
        monkeypatch.setattr("depthlens.engine.KEEP_BATCHES", 1)
        result = run(lens, tmp_path, backend="nnsight", tasks=[CHOICE], batch_tokens=256)
        assert len(parts(tmp_path)) > 3
        plain = run(lens, None, backend="nnsight", tasks=[CHOICE], batch_tokens=256)
        # other batches round otherwise
        pd.testing.assert_frame_equal(result.docs, plain.docs, rtol=0, atol=1e-4)

    def test_means_and_references_are_part_of_the_address(self, lens, tmp_path):
        asked = {"ablate": ["L1@mean", "L2.H1@resample"], "tasks": [CHOICE]}
        first = run(lens, tmp_path, references=["one prompt"], **asked)
        again = run(lens, tmp_path, references=["one prompt"], **asked)
        assert counts(again) == (3 * LIMIT * 4, 0) and again.docs.equals(first.docs)
        other = run(lens, tmp_path, references=["another prompt"], **asked)
        assert counts(other) == (2 * LIMIT * 4, LIMIT * 4)  # @resample alone
        more = run(lens, tmp_path, ["L1@mean"], tasks=[CHOICE], limit=LIMIT + 1)
        assert counts(more) == (LIMIT * 4, 4 + (LIMIT + 1) * 4)  # other contexts, another mean

    def test_means_are_not_measured_for_what_is_there(self, lens, tmp_path, monkeypatch):
        run(lens, tmp_path, ["L1@mean"], tasks=[CHOICE])
        monkeypatch.setattr(references, "measure_means", None)
        assert counts(run(lens, tmp_path, ["L1@mean"], tasks=[CHOICE])) == (2 * LIMIT * 4, 0)

    def test_a_donor_is_part_of_the_address(self, lens, tmp_path):
        one, other = (tiny.lens("llama-gqa", max_position_embeddings=4096) for _ in range(2))
        one.model.model.layers[1].mlp.up_proj.weight.mul_(2)
        other.model.model.layers[1].mlp.up_proj.weight.mul_(3)
        asked = {"ablate": ["L1@donor"], "tasks": [CHOICE]}
        run(lens, tmp_path, donor=one, **asked)
        assert counts(run(lens, tmp_path, donor=one, **asked)) == (2 * LIMIT * 4, 0)
        second = run(lens, tmp_path, donor=other, **asked)
        assert counts(second) == (LIMIT * 4, LIMIT * 4)  # the baseline has nothing of the donor

    def test_attribution_and_head_scores_are_kept(self, tmp_path, monkeypatch):
        lens = dl.load("organism")
        options = {"limit": 4, "store": str(tmp_path), "progress": False}
        for measure in (
            lambda **o: dl.head_sweep(lens, "organism_one_hop", method="attribution", **o).docs,
            lambda **o: dl.retrieval_scores(lens, "organism_one_hop", **o).frame,
            lambda **o: dl.retrieval_scores(lens, "organism_one_hop", method="exact", **o).frame,
            lambda **o: dl.retrieval_scores(lens, "organism_one_hop", method="attribution", **o).frame,
        ):
            without = measure(**options | {"store": None})
            first = measure(**options)
            with monkeypatch.context() as patch:
                patch.setattr(wavefront.Wavefront, "run", None)
                patch.setattr(attribution, "_batch", None)
                second = measure(**options)
            assert first.equals(without) and second.equals(without)
        for method in ("copy", "exact", "attribution"):
            record = dl.retrieval_scores(lens, "organism_one_hop", method=method, **options).record["store"]
            assert record["rows_read"] > 0 == record["rows_computed"] and record["parts"]

    def test_numbers_of_single_texts_are_kept(self, lens, tmp_path, monkeypatch):
        other, another = (tiny.lens("llama-gqa", max_position_embeddings=4096) for _ in range(2))
        other.model.model.layers[1].mlp.up_proj.weight.mul_(2)
        another.model.model.layers[1].mlp.up_proj.weight.mul_(3)
        texts, options = ["one text", "another one", "a third text"], {"store": str(tmp_path)}
        quiet = options | {"progress": False}

        def attention(n, **o):
            return result_attention.attention_at_results(lens, "arithmetic_cot", limit=n, num_fewshot=0, **o)

        def geometry(n, **o):
            g = dl.geometry.geometry(lens, texts[:n], **o)
            return pd.concat([g.distances, g.influences, g.logit_lens])

        added, keep = [], kept.Rows.keep
        monkeypatch.setattr(kept.Rows, "keep", lambda self, rows: added.extend(rows) or keep(self, rows))
        for measure, given in (
            (geometry, quiet),
            (lambda n, **o: dl.geometry.effects(lens, texts[:n], over="mean", **o), quiet),
            (lambda n, **o: dl.distill.activation_deltas(lens, other, texts[:n], **o), options),
            (attention, quiet),
        ):
            without = measure(3, **given | {"store": None})
            measure(2, **given)
            added.clear()
            third = measure(3, **given)
            assert {request for _, request in added} == {2}, "the third text alone is measured"
            with monkeypatch.context() as patch:
                patch.setattr(wavefront.Wavefront, "run", None)
                for name in ("_effects", "_measure"):
                    patch.setattr(geometry_module, name, None)
                patch.setattr(distill, "_Walk", None)
                again = measure(3, **given)
            assert third.equals(without) and again.equals(without)
        for changed in ({}, {"over": "mean"}, {"spare": 1}, {"seed": 1}):  # each is a part of the address
            without = dl.geometry.effects(lens, texts, **changed, **quiet | {"store": None})
            assert dl.geometry.effects(lens, texts, **changed, **quiet).equals(without)
        moved = dl.distill.weight_deltas(lens, other, store=None)
        assert dl.distill.weight_deltas(lens, other, **options).equals(moved)
        with monkeypatch.context() as patch:
            patch.setattr(distill, "_moved", None)
            assert dl.distill.weight_deltas(lens, other, **options).equals(moved)
        deltas = (dl.distill.activation_deltas(lens, one, texts, **options) for one in (other, another))
        assert not pd.DataFrame.equals(*deltas), "the second model is a part of the address"

    def test_equal_requests_are_one_row(self, lens, tmp_path):
        at = kept.keep(str(tmp_path), lens, "twice")
        requests = [Loglikelihood((1, 2), (3,))] * 3
        first = engine.Engine(lens, progress=False, kept=at).loglikelihood(requests, [dl.parse("baseline")])
        assert first[0][0] == first[0][1] == first[0][2]
        assert pd.read_parquet(parts(tmp_path)[0]).shape[0] == 1
        again = kept.keep(str(tmp_path), lens, "twice")
        assert not again.lacks(requests, [dl.parse("baseline")])


class TestTheModelIsKnownByWhatItComputes:
    def test_changed_weights_are_another_model(self, tmp_path):
        lens = tiny.lens("llama-gqa", max_position_embeddings=4096)
        first = run(lens, tmp_path, tasks=[CHOICE])
        before = lens.fingerprint
        weight = lens.model.model.layers[2].mlp.down_proj.weight
        weight.mul_(2)
        assert lens.fingerprint != before
        second = run(lens, tmp_path, tasks=[CHOICE])
        assert counts(second)[0] == 0 and not second.docs.equals(first.docs)
        weight.div_(2)
        assert lens.fingerprint == before
        weight.data = weight.data * 2  # without a trace in the version counter
        assert lens.fingerprint != before

    def test_hooks_and_replaced_methods_are_not_kept(self, tmp_path, caplog):
        lens = tiny.lens("llama-gqa", max_position_embeddings=4096)
        whole = run(lens, tmp_path, tasks=[CHOICE])
        mlp = lens.model.model.layers[1].mlp
        handle = mlp.register_forward_hook(lambda module, args, out: out * 3)
        with caplog.at_level(logging.WARNING):
            hooked = run(lens, tmp_path, tasks=[CHOICE])
        assert hooked.record["store"] is None and not hooked.docs.equals(whole.docs)
        assert "model.layers.1.mlp of tiny-llama-gqa has hooks" in caplog.text
        handle.remove()
        mlp.forward = lambda x: x
        assert lens.changed_by_hand == ("model.layers.1.mlp", "a forward method of its own")
        del mlp.forward
        assert counts(run(lens, tmp_path, tasks=[CHOICE]))[1] == 0

    def test_a_transplant_is_not_kept(self, tmp_path):
        lens, donor = (tiny.lens("llama-gqa", max_position_embeddings=4096) for _ in range(2))
        donor.model.model.layers[1].mlp.up_proj.weight.mul_(2)
        with dl.transplant(lens, donor, layers=[1]):
            assert run(lens, tmp_path, tasks=[CHOICE]).record["store"] is None
        assert counts(run(lens, tmp_path, tasks=[CHOICE]))[0] == 0

    def test_another_tokenizer_or_dtype_is_another_address(self, tmp_path):
        lens = tiny.lens("llama-gqa", max_position_embeddings=4096)
        run(lens, tmp_path, tasks=[WRITTEN])
        lens.model.generation_config.repetition_penalty = 1.3
        del lens.__dict__["writing"]
        assert counts(run(lens, tmp_path, tasks=[WRITTEN]))[0] == 0
        lens.model.bfloat16()
        assert counts(run(lens, tmp_path, tasks=[WRITTEN]))[0] == 0

    def test_what_encoding_leaves_in_a_tokenizer_does_not_matter(self, lens):
        before = lens.writing
        lens.tokenizer("some text", truncation=True, max_length=3, padding="max_length")
        del lens.__dict__["writing"]
        assert lens.writing == before

    def test_the_record_names_parts_and_they_tell_what_made_them(self, lens, tmp_path):
        result = run(lens, tmp_path, tasks=[CHOICE])
        (name,) = result.record["store"]["parts"]
        (about,) = store_view.details(Store(str(tmp_path)), name)
        assert about["model"] == lens.name and about["fingerprint"] == lens.fingerprint
        assert about["versions"]["torch"] == torch.__version__ and about["label"] == CHOICE
        assert set(about["conditions"]) == {"baseline", "L0", "L1", "L2", "L3", "L4"}
        assert about["requests"] == 4 * LIMIT and about["rows"] == 6 * 4 * LIMIT
        assert {"time", "platform", "git_commit", "dtype", "numerics", "backend"} <= set(about)


class TestInterrupted:
    def stopping(self, monkeypatch, after: int) -> None:
        """Ctrl-C in the middle of a later pack."""
        score, n = engine.Engine._score_pack, 0

        def stopped(self, *args):
            nonlocal n
            n += 1
            if n > after:
                raise KeyboardInterrupt
            score(self, *args)

        monkeypatch.setattr(engine.Engine, "_score_pack", stopped)

    def test_ctrl_c_says_what_is_kept_and_the_rest_goes_on(self, lens, tmp_path, small_packs, monkeypatch):
        whole = run(lens, None, tasks=[CHOICE])
        with monkeypatch.context() as patch:
            self.stopping(patch, after=2)
            with pytest.raises(Interrupted) as stop:
                run(lens, tmp_path, tasks=[CHOICE])
        total = 6 * LIMIT * 4
        said = rf"(\d+) of {total} rows of {CHOICE} are kept in {tmp_path}; run the same again to go on"
        done = int(re.fullmatch(said, str(stop.value))[1])
        assert 0 < done < total
        resumed = run(lens, tmp_path, tasks=[CHOICE])
        assert counts(resumed) == (done, total - done) and resumed.docs.equals(whole.docs)

    def test_numbers_of_single_texts_say_it_too(self, lens, tmp_path, monkeypatch):
        measure, texts = geometry_module._measure, ["one text", "another one", "a third text"]

        def stopped(lens, tokens):
            if len(tokens) == len(texts[2]):  # a byte a token
                raise KeyboardInterrupt
            return measure(lens, tokens)

        options = {"store": str(tmp_path), "progress": False}
        with monkeypatch.context() as patch:
            patch.setattr(geometry_module, "_measure", stopped)
            with pytest.raises(Interrupted, match=r"(\d+) of \d+ rows of geometry are kept in .*; run the same again"):
                geometry_module.geometry(lens, texts, **options)
        stored = geometry_module.geometry(lens, texts, **options).record["store"]
        assert stored["rows_read"] == 2 * stored["rows_computed"] > 0

    def test_without_a_store_it_says_so(self, lens, monkeypatch):
        self.stopping(monkeypatch, after=0)
        with pytest.raises(Interrupted, match="nothing is kept without a store"):
            run(lens, None, tasks=[CHOICE])

    def test_the_command_line(self, tmp_path, small_packs, monkeypatch, capsys):
        model = tiny.save(tmp_path / "model", "llama-gqa", max_position_embeddings=4096)
        command = ["sweep", str(model), CHOICE, "--ablate", "layers", "--limit", str(LIMIT)]
        command += ["--out", str(tmp_path / "out"), "--store", str(tmp_path / "s")]
        monkeypatch.setenv(store.ENVIRONMENT, "none")
        with monkeypatch.context() as patch:
            self.stopping(patch, after=1)
            with pytest.raises(SystemExit) as end:
                cli.main(command)
        err = capsys.readouterr().err.splitlines()[-1]
        assert end.value.code == 130 and err.startswith("Interrupted: ") and err.endswith("run the same again to go on")
        assert not (tmp_path / "out" / "docs.parquet").exists()
        with pytest.raises(SystemExit) as end:
            cli.main(command)
        assert end.value.code == 0
        record = Result.load(tmp_path / "out").record["store"]
        assert record["rows_read"] > 0 and record["rows_computed"] > 0 and record["location"] == str(tmp_path / "s")


class TestDamage:
    @pytest.fixture
    def at(self, lens, tmp_path, small_packs) -> Path:
        run(lens, tmp_path / "s")
        assert len(parts(tmp_path / "s")) >= 4
        return tmp_path / "s"

    def recovers(self, lens, at: Path, damaged: list[Path], caplog) -> None:
        with caplog.at_level(logging.WARNING):
            again = run(lens, at)
        for path in damaged:
            assert f"part {path.parent.parent.name}/{path.parent.name}/{path.name} is damaged" in caplog.text
            assert (at / "damaged" / f"{path.parent.parent.name}.{path.parent.name}.{path.name}").exists()
        assert counts(again)[1] > 0
        assert again.docs.equals(run(lens, None).docs)
        assert counts(run(lens, at))[1] == 0  # whole again

    def test_parts_cut_off_at_a_random_byte(self, lens, at, caplog):
        chance = random.Random(1)
        for path in parts(at):
            path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])
        self.recovers(lens, at, parts(at), caplog)

    @pytest.mark.parametrize("seed", range(4))
    def test_one_bit_flipped(self, lens, at, caplog, seed):
        chance = random.Random(seed)
        path = chance.choice(parts(at))
        flip(path, chance.randrange(path.stat().st_size), chance.randrange(8))
        self.recovers(lens, at, [path], caplog)

    def test_a_part_of_another_schema(self, lens, at, caplog):
        path = parts(at)[0]
        foreign = path.with_name("x.parquet")
        pd.DataFrame({"condition": ["L0"], "value": [1.0]}).to_parquet(foreign)
        named = foreign.rename(path.with_name(f"{store._digest(foreign.read_bytes())}.parquet"))
        with caplog.at_level(logging.WARNING):
            assert counts(run(lens, at))[1] == 0
        assert not named.exists() and "its columns are condition, value" in caplog.text

    def test_an_empty_file_and_files_of_others_are_no_parts(self, lens, at):
        parts(at)[0].with_name(".new-123").write_bytes(b"half")
        parts(at)[0].with_name("notes.txt").write_text("mine")
        assert counts(run(lens, at))[1] == 0

    def test_verify_names_them_and_ends_with_1(self, lens, at, capsys):
        path = parts(at)[0]
        flip(path, 40)
        n = len(parts(at))
        for code, damaged in ((1, 1), (0, 0)):
            with pytest.raises(SystemExit) as end:
                cli.main(["store", "verify", "--store", str(at)])
            out, err = capsys.readouterr()
            assert end.value.code == code and out == f"{n} parts, {damaged} damaged\n"
            assert (path.name in err) == bool(damaged)
            n -= damaged


class TestFolders:
    def test_a_newer_store_is_refused_in_one_line(self, lens, tmp_path):
        (tmp_path / "format.json").write_text('{"format": 2}')
        with pytest.raises(UserError, match="by a newer depthlens .format 2, this one has 1.; update depthlens"):
            run(lens, tmp_path)
        assert list(tmp_path.iterdir()) == [tmp_path / "format.json"]

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"form": 1}', '{"format": 0}', '{"format": "one"}'])
    def test_a_damaged_format_is_refused(self, tmp_path, text):
        (tmp_path / "format.json").write_text(text)
        with pytest.raises(UserError, match="format.json is damaged; put"):
            Store(str(tmp_path))

    def test_a_folder_with_other_things_is_refused(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("precious")
        with pytest.raises(UserError, match=r"a folder with other things in it \(thesis.tex"):
            Store(str(tmp_path))
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize(
        ("where", "message"),
        [
            ("/proc/depthlens", "cannot write to '/proc/depthlens'"),
            ("", "give a folder or URL"),
            ("nosuch://x/y", "cannot be opened: Protocol not known: nosuch"),
        ],
    )
    def test_a_bad_store_is_told_before_anything_is_computed(self, lens, where, message):
        with pytest.raises(UserError, match=re.escape(message)):
            dl.layer_sweep(lens, CHOICE, limit=1, store=where, progress=False)

    def test_a_file_is_no_store(self, lens, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(UserError, match="is a file"):
            run(lens, tmp_path / "file")

    def test_which_store(self, tmp_path, monkeypatch):
        assert open_store(None) is None
        monkeypatch.setenv(store.ENVIRONMENT, str(tmp_path / "named"))
        assert open_store().location == str(tmp_path / "named")
        monkeypatch.setenv(store.ENVIRONMENT, "none")
        assert open_store() is None
        monkeypatch.delenv(store.ENVIRONMENT)
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
        assert open_store().location == str(tmp_path / "data" / "depthlens" / "results")
        assert open_store(tmp_path / "named").location == str(tmp_path / "named")

    def test_a_url(self, lens, alone):
        first = run(lens, "memory://results/one")
        second = run(lens, "memory://results/one")
        assert counts(second)[1] == 0 and second.docs.equals(alone.docs) and first.docs.equals(alone.docs)
        files = fsspec.filesystem("memory").find("/results/one")
        assert any(f.endswith(".parquet") for f in files)
        (name, *_) = second.record["store"]["parts"]
        with fsspec.open(f"memory://results/one/{name}", "wb") as file:
            file.write(b"torn")
        assert counts(run(lens, "memory://results/one"))[1] > 0
        assert any("/damaged/" in f for f in fsspec.filesystem("memory").find("/results/one"))

    def test_the_clock_does_not_matter(self, lens, tmp_path, monkeypatch):
        run(lens, tmp_path, tasks=[CHOICE])
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: 0.0)
            patch.setattr(provenance, "where_and_when", lambda: {"platform": "x", "time": "1970-01-01T00:00:00+00:00"})
            more = run(lens, tmp_path, tasks=[CHOICE], limit=LIMIT + 1)
        assert counts(more) == (6 * LIMIT * 4, 6 * 4)
        assert counts(run(lens, tmp_path, tasks=[CHOICE], limit=LIMIT + 1))[1] == 0


def child(body: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a program that sweeps the tiny model, in a process of its own."""
    program = (
        "import sys, os, torch; torch.set_num_threads(1); sys.path.insert(0, 'tests')\n"
        "import tiny, depthlens as dl\n"
        "from depthlens import budget, engine, cli\n"
        "budget.CPU_STATE_BYTES = 1 << 14\n"
        "lens = tiny.lens('llama-gqa', max_position_embeddings=4096)\n"
        "def run(store, limit=3):\n"
        "    asked = {'limit': limit, 'store': store, 'progress': False}\n"
        "    return dl.condition_sweep(lens, 'capitals_continuation', 'layers', **asked)\n"
        f"{body}"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300)


class TestNoRoom:
    def test_no_room_is_one_line_and_nothing_is_torn(self, lens, tmp_path, small_packs):
        """A limit on the size of files stands for a full disk: writes fail in the middle."""
        body = (
            "import resource\n"
            "run(None, 1)\n"
            "put, n = engine.Rows.put, 0\n"
            "def counted(self, *a):\n"
            "    global n\n"
            "    n += 1\n"
            "    if n == 3: resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))\n"
            "    put(self, *a)\n"
            "engine.Rows.put = counted\n"
            "try: run(sys.argv[1])\n"
            "except dl.UserError as e: print(e)\n"
        )
        done = child(body, tmp_path / "s")
        assert re.fullmatch(
            r"store '.*' cannot be written: File too large; what it held is whole: make room or name another store, "
            r"and run again to go on\n",
            done.stdout,
        ), done
        assert len(parts(tmp_path / "s")) == 2 and not list((tmp_path / "s").rglob(".new-*"))
        assert store_view.verify(Store(str(tmp_path / "s"))) == (2, [])
        resumed = run(lens, tmp_path / "s", tasks=[CHOICE])
        assert counts(resumed)[0] > 0 and resumed.docs.equals(run(lens, None, tasks=[CHOICE]).docs)

    def test_a_folder_that_becomes_read_only_midway(self, lens, tmp_path, small_packs):
        """Root may write anywhere, so that the sweep runs as somebody else where the tests are root's."""
        body = (
            "where = sys.argv[1]\n"
            "run(None, 1)\n"
            "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
            "put, n = engine.Rows.put, 0\n"
            "def counted(self, *a):\n"
            "    global n\n"
            "    n += 1\n"
            "    if n == 2:\n"
            "        for folder, _, _ in os.walk(where): os.chmod(folder, 0o555)\n"
            "    put(self, *a)\n"
            "engine.Rows.put = counted\n"
            "try: run(where)\n"
            "except dl.UserError as e: print(e)\n"
        )
        at = tmp_path / "s"
        at.mkdir()
        if os.getuid() == 0:
            os.chown(at, 65534, 65534)
        for folder in (tmp_path, *tmp_path.parents):
            if folder.owner() == "root" and folder not in (Path("/"), Path("/tmp")) and os.getuid() == 0:
                folder.chmod(folder.stat().st_mode | 0o055)
        done = child(body, at)
        assert "cannot be written: Permission denied; what it held is whole" in done.stdout, done
        assert done.stdout.count("\n") == 1
        for folder, _, _ in os.walk(at):
            os.chmod(folder, 0o777)
        assert len(parts(at)) == 1
        resumed = run(lens, at, tasks=[CHOICE])
        assert counts(resumed)[0] > 0 and resumed.docs.equals(run(lens, None, tasks=[CHOICE]).docs)


class TestProcesses:
    """`killed.py` forks its children from one that has loaded the organism; by hand with 50 kills."""

    def script(self, *arguments: object) -> dict:
        path = Path(__file__).parents[1] / "killed.py"
        done = subprocess.run(
            [sys.executable, str(path), *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @pytest.mark.slow
    def test_killed_ten_times_the_result_is_that_of_an_undisturbed_sweep(self, tmp_path):
        found = self.script("kills", tmp_path, "--kills", 10)
        assert found["kills"] == 10 and found["equal"]
        assert found["packs_again_per_kill"] <= 1 and found["packs"] > 20

    @pytest.mark.slow
    def test_four_at_once_are_as_one_and_do_nothing_twice(self, tmp_path):
        found = self.script("together", tmp_path)
        assert found["equal"] and found["rows"] > 1000 and found["rows_twice"] == 0


class TestReservations:
    def test_others_see_a_reservation_as_long_as_it_is_held(self, tmp_path):
        one, other = Reservations(tmp_path), Reservations(tmp_path)
        with one.reserve(lambda others: (others, {"mine": 1})) as seen:
            assert seen == []
            with other.reserve(lambda others: (others, {})) as seen:
                assert seen == [{"mine": 1}]
        with other.reserve(lambda others: (others, {})) as seen:
            assert seen == []
        assert [p.name for p in tmp_path.iterdir()] == ["mutex"]

    def test_a_dead_owners_reservation_counts_for_nothing(self, tmp_path):
        program = (
            "import os, pathlib, sys; from depthlens.reservations import Reservations\n"
            "at = Reservations(pathlib.Path(sys.argv[1]))\n"
            "with at.reserve(lambda others: (others, {'dead': 1})): os._exit(9)"
        )
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
        assert list(tmp_path.glob("*.json"))
        with Reservations(tmp_path).reserve(lambda others: (others, {})) as seen:
            assert seen == []
        assert not list(tmp_path.glob("*.json"))

    def test_a_sweep_waits_for_rows_that_another_computes(self, lens, tmp_path):
        """The other's reservation is held here; its rows come, or it gives up, and the sweep ends either way."""
        alone = run(lens, None, tasks=[CHOICE])
        at = kept.keep(str(tmp_path), lens, CHOICE)
        seen = []
        done = threading.Event()

        def swept() -> None:
            seen.append(run(lens, tmp_path, tasks=[CHOICE]))
            done.set()

        prepared = dl.harness.prepare(lens, dl.harness.load_tasks([CHOICE]), limit=LIMIT)[0]
        conditions = dl.ablations.expand("layers", lens.dims)
        everything = {
            "conditions": [str(c) for c in conditions],
            "requests": [kept.digest(q) for q in prepared.requests],
        }
        with Reservations(at.entry.reservations_folder).reserve(lambda others: (None, everything)):
            thread = threading.Thread(target=swept)
            thread.start()
            assert not done.wait(1.5)
        thread.join(60)
        assert seen[0].docs.equals(alone.docs) and counts(seen[0])[1] == 6 * LIMIT * 4


class TestCommands:
    @pytest.fixture
    def at(self, lens, tmp_path) -> Path:
        run(lens, tmp_path / "s")
        return tmp_path / "s"

    def call(self, capsys, *arguments: object) -> tuple[int, str, str]:
        try:
            cli.main([*map(str, arguments)])
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    def test_list(self, at, capsys):
        code, out, _ = self.call(capsys, "store", "list", "--store", at)
        head, *rows, _, total = out.splitlines()
        assert code == 0 and head.split() == store_view.COLUMNS
        assert [row.split()[1:3] for row in rows] == [[task, "tiny-llama-gqa"] for task in sorted([CHOICE, WRITTEN])]
        assert re.fullmatch(rf"2 entries, [\d.]+ kB in {at}", total)

    def test_list_of_nothing(self, tmp_path, capsys):
        code, out, _ = self.call(capsys, "store", "list", "--store", tmp_path / "new")
        assert (code, out) == (0, f"nothing is kept yet\n\n0 entries, 0 B in {tmp_path / 'new'}\n")

    def test_show(self, at, capsys):
        key = parts(at)[0].parent.parent.name
        code, out, _ = self.call(capsys, "store", "show", f"{key}/{CHOICE}", "--store", at)
        about = json.loads(out)
        assert code == 0 and about["rows"] == 6 * LIMIT * 4 and about["model"] == "tiny-llama-gqa"
        code, out, err = self.call(capsys, "store", "show", "nothing", "--store", at)
        assert code == 2 and err.splitlines()[1].startswith("Error: unknown part 'nothing'") and err.count("\n") == 2

    def test_prune(self, lens, at, capsys):
        flip(parts(at)[0], 30)
        assert counts(run(lens, at))[1] > 0
        parts(at)[0].with_name(".new-9").write_bytes(b"half")
        code, out, _ = self.call(capsys, "store", "prune", "--leftovers", "--store", at)
        assert code == 0 and out.endswith("deleted 0 parts (0 B) and 2 leftovers\n")
        n = len(parts(at))
        code, out, _ = self.call(capsys, "store", "prune", "--task", CHOICE, "--dry-run", "--store", at)
        assert code == 0 and out.splitlines()[-1].startswith("would delete 1 parts") and len(parts(at)) == n
        self.call(capsys, "store", "prune", "--task", CHOICE, "--older-than", 1, "--store", at)
        assert len(parts(at)) == n
        self.call(capsys, "store", "prune", "--task", CHOICE, "--model", "tiny-llama-gqa", "--store", at)
        assert len(parts(at)) == n - 1
        self.call(capsys, "store", "prune", "--all", "--store", at)
        assert parts(at) == []
        assert counts(run(lens, at))[0] == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["prune"], "nothing to prune is named"),
            (["prune", "--model", "gpt-9"], "unknown model 'gpt-9'"),
            (["prune", "--task", "capital_continuation"], f"did you mean {CHOICE}"),
            (["prune", "--older-than", "-1"], "--older-than '-1': give a number of days"),
        ],
    )
    def test_mistakes(self, at, capsys, arguments, message):
        code, out, err = self.call(capsys, "store", *arguments, "--store", at)
        first, last = err.splitlines()
        assert code == 2 and out == "" and first == f"reading the store {at} ..." and last.startswith("Error: ")
        assert message in last

    def test_no_store(self, capsys, monkeypatch):
        monkeypatch.setenv(store.ENVIRONMENT, "none")
        code, _, err = self.call(capsys, "store", "list")
        fault = "there is no store (DEPTHLENS_STORE or --store says none)"
        assert code == 2 and err == f"Error: {fault}; name one with --store\n"
