"""The first cells of a notebook: check every parameter, load the model, print versions, device and seed.

Every notebook calls `setup_notebook`, whether a person, papermill or ``depthlens run`` executes it. A wrong value thus
stops a notebook in its first second with one line that names the value, what is allowed and the fix.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import TqdmWarning

from depthlens import arguments, progress, provenance
from depthlens.errors import UserError, unknown
from depthlens.paths import writable_folder
from depthlens.runner import parameters

if TYPE_CHECKING:
    from depthlens.models.lens import Lens


def setup_notebook(
    model: str,
    tasks: Sequence[str] = (),
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    enable_thinking: bool | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    think_end_token: str | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    offload: str | None = None,
    remote: bool | str = False,
    out: str | None = None,
    include_path: str | None = None,
    **others: Any,
) -> Lens:
    """Check a notebook's parameters, seed every generator, load the model and print one line of set-up.

    Args:
        model: Alias, hub id, directory or ``.gguf`` file.
        tasks: lm-eval task names; looked up before the model is loaded.
        limit: Documents of each task; None for all.
        num_fewshot: Worked examples before each question; None keeps what each task says.
        apply_chat_template: Wrap prompts in the model's chat template.
        enable_thinking: Argument of the chat template; None: its own way.
        gen_kwargs: How answers are written, over what the tasks say; see `depthlens.EvalOptions`.
        think_end_token: Text that ends what a reasoning model thinks.
        seed: Seed of Python, NumPy and torch.
        device: ``auto``, ``cpu``, ``mps``, ``cuda``, ``cuda:N``, or several GPUs: ``cuda:0,cuda:1``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        quantize: ``int8``, ``int4`` or ``nf4``; see `depthlens.load`.
        offload: ``disk`` for a model larger than memory; see `depthlens.load`.
        remote: True for weights that stay on NDIF, ``"local"`` to simulate that; see `depthlens.load`.
        out: Folder for the notebook's results; None keeps nothing.
        include_path: Folder with more lm-eval YAML files.
        others: Further parameters of the notebook, by name, such as ``ways`` or ``knowledge``. Values are checked,
            parts of a model against this one, and tasks are looked up as ``tasks`` are.

    Returns:
        The loaded model.

    Raises:
        UserError: for the first value that is not allowed.
    """
    if isinstance(tasks, str) or not isinstance(tasks, Sequence):
        raise UserError(f"tasks {tasks!r}: give a list of task names, e.g. [{str(tasks)!r}]")
    options: dict[str, Any] = {"num_fewshot": num_fewshot, "seed": seed, "limit": limit, "gen_kwargs": gen_kwargs}
    options |= {"include_path": include_path}
    loaded = {"dtype": dtype, "device": device, "quantize": quantize, "offload": offload, "remote": remote}
    arguments.check(**options, **loaded, out=out, apply_chat_template=apply_chat_template)
    arguments.check(enable_thinking=enable_thinking, think_end_token=think_end_token)
    if odd := next((name for name in others if name not in parameters.RULES and not name.endswith("_limit")), None):
        raise unknown("parameter", odd, parameters.RULES)
    parameters.check(model=model, **others)
    of_roles = parameters.named(others, parameters.TASKS)
    arguments.check(tasks=tasks or list(dict.fromkeys(of_roles)))
    tasks = list(dict.fromkeys([*tasks, *of_roles]))
    if out is not None:
        writable_folder(out)
    with progress.working(f"loading {model} and {', '.join(map(str, tasks))}"):
        lens, found = _load(model, tasks, loaded, **options)
    from depthlens.tasks.harness import check_chat  # slow to import before

    check_chat(lens, apply_chat_template, enable_thinking)
    parameters.check_parts(others, lens.dims)
    about = lens.describe()
    packages = ("depthlens", "torch", "transformers", "lm-eval")
    versions = " ".join(f"{p} {metadata.version(p)}" for p in packages)
    commit = provenance.git_commit() or "none"
    where = f"{about['device']} of {lens.remote.host}" if lens.remote else about["device"]
    kept = ", ".join(map(str, filter(None, [about["dtype"], about["quantize"] or about["quantization"]])))
    print(
        f"{versions} | git {commit} | {about['name']} {kept} on {where}, "
        f"attention {about['attention_kernel']} | seed {seed} | fingerprint {str(about['fingerprint'])[:12]}"
    )
    return lens


def _load(
    model: str, tasks: Sequence[str], loaded: Mapping[str, Any], *, seed: int, **options: Any
) -> tuple[Lens, dict[str, Any]]:
    """Look up the tasks, seed every generator and load the model; returns the model and the tasks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # bars of other libraries want ipywidgets; ours do not
        import torch  # here, because importing takes seconds in which the cell says what it does

        from depthlens.models import loading, names
        from depthlens.tasks import harness
    source = names.find(model)
    if not loaded["remote"]:
        names.configuration(source)
    found = harness.load_tasks(tasks, seed=seed, **options)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return loading.load(model, **loaded), found
