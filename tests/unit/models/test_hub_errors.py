"""The hub: errors as huggingface_hub raises them, wrapped as transformers wraps them, each in one line."""

from __future__ import annotations

import errno
import types

import pytest
import tiny
from huggingface_hub import errors as hub

from depthlens.errors import UserError
from depthlens.models import loading, sources


def refusal(name: str) -> str:
    with pytest.raises(UserError) as raised:
        loading.load(name)
    message = str(raised.value)
    assert "\n" not in message
    return message


def answer(kind, status):
    response = types.SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"{status} Client Error.\nSee the page.", response=response)


def wrapped(text, cause):
    error = OSError(text)
    error.__cause__ = cause
    return error


GATED = wrapped("You are trying to access a gated repo.\nMake sure ...", answer(hub.GatedRepoError, 403))
MISSING = wrapped(
    "x/y is not a local folder and is not a valid model identifier listed on ...\nIf this is private ...",
    answer(hub.RepositoryNotFoundError, 401),
)
NOT_CACHED = wrapped("We couldn't connect to 'https://hf.co' to load ...\n", hub.LocalEntryNotFoundError("x"))
CUT_OFF = wrapped("Can't load the configuration of 'x/y'.\nIf ...", hub.HTTPError("peer closed connection"))
NO_PICKLES = OSError("x/y does not appear to have a file named model.safetensors\n no file named ...")


@pytest.mark.parametrize(
    ("error", "offline", "said"),
    [
        (GATED, False, "is gated: accept its licence on its hub page, then set HF_TOKEN"),
        (MISSING, False, "does not exist on the hub, or is private; check the spelling or set HF_TOKEN"),
        (
            answer(hub.RevisionNotFoundError, 404),
            False,
            "has no such revision on the hub; give a branch, tag or commit",
        ),
        (NOT_CACHED, False, "cannot be reached: no connection to the hub; check the network"),
        (NOT_CACHED, True, "is not in the local cache and HF_HUB_OFFLINE=1; unset it"),
        (CUT_OFF, False, "cannot be reached: no connection to the hub"),
        (OSError(errno.ENOSPC, "No space left on device"), False, "no space left on the device; free some"),
        (NO_PICKLES, False, "has no safetensors weights; pickled weights are never read"),
        (ValueError("\n\nsomething else\nmore"), False, "cannot be read: something else"),
    ],
)
def test_every_failure_of_the_hub_is_one_line(error, offline, said, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(sources, "probe", lambda source: source)  # the hub fails later, on another file
    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", fail)
    monkeypatch.setattr(loading, "is_offline_mode", lambda: offline)
    message = refusal("x/y")
    assert message.startswith("model 'x/y' ") and said in message


def test_a_hub_id_that_is_not_cached_is_refused_without_a_network():
    message = refusal("no-such-owner/no-such-model")  # for real: the tests run with HF_HUB_OFFLINE=1
    assert "'no-such-owner/no-such-model' is not in the local cache and HF_HUB_OFFLINE=1" in message


def test_a_bug_of_ours_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("bug")

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", broken)
    with pytest.raises(TypeError, match="bug"):
        loading.load(str(tiny.save(tmp_path, "llama-gqa")))
