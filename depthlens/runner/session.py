"""The set-up of a notebook: check every parameter, load the model, print versions, device and seed.

Every notebook calls `setup_notebook`, whether a person, papermill or ``depthlens run`` executes it. A wrong value thus
stops a notebook in its first second with one line that names the value, what is allowed and the fix.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import TqdmWarning

from depthlens import arguments, progress, provenance
from depthlens.errors import UserError
from depthlens.paths import writable_folder
from depthlens.runner import parameters

if TYPE_CHECKING:
    from IPython.display import Markdown

    from depthlens.models.lens import Lens

# the names of parameters; other options of experiments are given where a cell calls one
NAMES = {*arguments.RULES} - {*arguments.COMMANDS} | {"model"}.union(*parameters.ASKED.values())
OPTIONS = (parameters.DOCUMENTS, parameters.CHAT, parameters.WRITING, arguments.LOADING)
PACKAGES = ("depthlens", "torch", "transformers", "lm-eval")


@dataclass(frozen=True)
class Study:
    """The model of a notebook, and what its cells repeat.

    Attributes:
        lens: The model.
        parameters: The values that the notebook has of parameters, by name: declared ones, and others that were given.
        documents: Which documents and worked examples: ``limit``, ``num_fewshot``, ``seed`` and ``include_path``.
        chat: How prompts are wrapped: ``apply_chat_template`` and ``enable_thinking``.
        writing: How answers are written: ``gen_kwargs`` and ``think_end_token``.
        loading: How the model was loaded: ``device``, ``dtype``, ``quantize`` and so on.
    """

    lens: Lens
    parameters: Mapping[str, Any]
    documents: dict[str, Any]
    chat: dict[str, Any]
    writing: dict[str, Any]
    loading: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """`documents` and `chat`: what every sweep of the notebook's tasks gets."""
        return self.documents | self.chat

    @property
    def seed(self) -> int:
        """The parameter ``seed``, or 0."""
        return int(self.get("seed", 0))

    def get(self, name: str, default: Any) -> Any:
        """A parameter that the notebook does not declare: what ``-p`` or a profile gave, or else its default here."""
        return self.parameters.get(name, default)

    def halves(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """`documents` of every other document, which choose parts, and of those between them, which test these parts.

        Raises:
            UserError: ``limit`` leaves one half without documents.
        """
        if (n := self.get("limit", None)) == 1:
            raise UserError("limit 1: one half of the documents chooses, and the other tests; give at least 2")
        rest = {name: value for name, value in self.documents.items() if name != "limit"}
        first, second = ({"samples": f"{start}:{n or ''}:2", **rest} for start in (0, 1))
        return first, second

    def save(self, finding: Any, name: str = "") -> None:
        """Save a result in the notebook's folder, or in the folder ``name`` within it; without a folder do nothing."""
        if out := self.get("out", None):
            finding.save(Path(out) / name, overwrite=True)

    def say(self, *findings: Any) -> Markdown:
        """A list of sentences: texts, lists of texts, and what others `describe`; None says nothing."""
        from IPython.display import Markdown

        return Markdown("\n".join(f"- {sentence}" for finding in findings for sentence in _sentences(finding)))

    def fold(self, title: str, *findings: Any) -> Markdown:
        """The same below a title that opens it: HTML alone, as pages end a fold of Markdown at its first empty line."""
        from IPython.display import Markdown
        from nbconvert.filters import markdown2html

        said = markdown2html(self.say(*findings).data)
        return Markdown(f"<details><summary>{title}</summary>{said}</details>")

    def recap(self, *findings: Any) -> Markdown:
        """The same, and where the results are."""
        out = self.get("out", None)
        return self.say(*findings, f"Results: {out or 'no files, as `out` is not set; the store keeps the answers'}")


def setup_notebook(namespace: Mapping[str, Any]) -> Study:
    """Check a notebook's parameters, seed every generator, load the model and print one line of set-up.

    Args:
        namespace: ``globals()`` of the notebook, or a dictionary. What has the name of a parameter of this suite is
            checked, whether the notebook declares it or not: ``model``, options of experiments and of `depthlens.load`,
            and what notebooks add, such as ``ways`` or ``knowledge``. Tasks are looked up before the model is loaded,
            and parts of a model are checked against this one. Other names mean nothing here.

    Raises:
        UserError: for the first value that is not allowed.

    Example:
        >>> study = dl.setup_notebook({"model": "organism", "tasks": ["organism_one_hop"], "limit": 8})
        depthlens ... | organism ... | seed 0 | fingerprint ...
        >>> study.options
        {'limit': 8}
    """
    values = {n: v for n, v in namespace.items() if n in NAMES}
    parameters.check({"model": None, **values})
    tasks = list(dict.fromkeys(parameters.named(values, parameters.TASKS)))
    if (out := values.get("out")) is not None:
        writable_folder(out)
    with progress.working(f"loading {values['model']} and {', '.join(tasks)}"):
        lens = _load(values, tasks)
    parameters.check_parts(values, lens.dims)
    about = lens.describe()
    where = f"{about['device']} of {lens.remote.host}" if lens.remote else about["device"]
    kept = ", ".join(map(str, filter(None, [about["dtype"], about["quantize"] or about["quantization"]])))
    print(
        f"{' '.join(f'{p} {metadata.version(p)}' for p in PACKAGES)} | git {provenance.git_commit() or 'none'} | "
        f"{about['name']} {kept} on {where}, attention {about['attention_kernel']} | seed {values.get('seed', 0)} | "
        f"fingerprint {str(about['fingerprint'])[:12]}"
    )
    if progress.in_kernel():
        from IPython.display import HTML, display

        display(HTML("<style>.jp-RenderedHTMLCommon table :is(td, th) { text-align: left !important }</style>"))
    return Study(lens, values, *(_some(values, names) for names in OPTIONS))


def _load(values: Mapping[str, Any], tasks: Sequence[str]) -> Lens:
    """Look up the tasks, seed every generator, load the model and look at its chat template."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # bars of other libraries want ipywidgets; ours do not
        # here, because importing takes seconds in which the cell says what it does
        from transformers import set_seed

        from depthlens.models import loading
        from depthlens.tasks import harness
    if tasks:  # 09_claims has tasks of its own where none are given
        harness.load_tasks(tasks, **_some(values, (*parameters.DOCUMENTS, "gen_kwargs")))
    set_seed(values.get("seed", 0))
    lens = loading.load(values["model"], **_some(values, arguments.LOADING))
    harness.check_chat(lens, values.get("apply_chat_template", False), values.get("enable_thinking"))
    return lens


def _some(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of the names that have a value."""
    return {name: values[name] for name in names if name in values}


def _sentences(finding: Any) -> Sequence[str]:
    if finding is None or isinstance(finding, str):
        return [finding] if finding else []
    return finding.describe() if hasattr(finding, "describe") else finding
