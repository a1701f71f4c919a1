"""Views with a script, in JupyterLab and on pages: what they have in common.

The script `views.js` draws all of them. In JupyterLab a view is a widget (anywidget), whose state the next cell can
read; on a page script and data stand in the HTML, and nothing is loaded. Where no script runs, a table stands in its
place.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from depthlens.paths import write_files, writing_to

SCRIPT, STYLE = ((files(__package__) / f"views.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))


def script_hash() -> str:
    """What a content security policy names so that this script may run, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"


class View:
    """Something that is looked at with a script; subclasses say what the script reads."""

    @property
    def title(self) -> str:
        """Of a page of its own."""
        raise NotImplementedError

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the script reads; ``start`` is the state at first."""
        raise NotImplementedError

    def table(self) -> str:
        """What stands where no script runs, as HTML."""
        raise NotImplementedError

    @cached_property
    def widget(self) -> Any:
        """The widget that JupyterLab shows."""
        import anywidget  # only where there is a notebook
        import traitlets

        class Widget(anywidget.AnyWidget):
            _esm, _css = SCRIPT, STYLE
            data = traitlets.Dict().tag(sync=True)
            state = traitlets.Dict().tag(sync=True)

        return Widget(data=self.data, state=self.data["start"])

    def html(self) -> str:
        """The view as a part of a page."""
        data = json.dumps(self.data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
        return (
            f'<div class="depthlens-explorer" data-page><div class="static">{self.table()}</div>\n'
            f'<script type="application/json">{data}</script></div>\n'
            f'<style>{STYLE}</style>\n<script type="module">{SCRIPT}</script>'
        )

    def save(self, path: str | Path) -> None:
        """Write a page of its own, which loads nothing.

        Raises:
            UserError: the file cannot be written.
        """
        path = Path(path)
        with writing_to(path.parent):
            text = page(self.title, self.html()).encode()
            write_files(path.parent, {path.name: lambda file: file.write(text)})

    def _repr_mimebundle_(self, **_: Any) -> Any:
        shown = {"text/html": self.html(), "text/plain": repr(self)}
        widget, metadata = self.widget._repr_mimebundle_()
        return widget | shown, metadata


def page(title: str, content: str) -> str:
    """A page of its own that loads nothing."""
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {script_hash()}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>:root {{ color-scheme: light dark }} "
        "body { background: light-dark(#fff, #14181c); max-width: 76rem; margin: 1rem auto; padding: 0 1rem } "
        "h1 { font: 600 1.3rem system-ui }</style></head>"
        f"<body><main><h1>{html.escape(title)}</h1>{content}</main></body></html>"
    )
