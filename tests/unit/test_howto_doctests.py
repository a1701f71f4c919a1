"""Python on the how-to pages, run as doctests: what a page prints is what the code prints.

A page runs in a folder of its own, in which its YAML blocks are the files that their first lines name.
"""

import doctest
import re

import pytest

from depthlens import paths

PAGES = sorted((paths.data_dir().parent / "docs" / "howto").glob("*.md"))
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
EMBEDDED = {"own_task"}  # pages that load the embedded model
OFTEN = {"own_model", "resuming"}  # `make test` runs these two


def code(text: str) -> str:
    """The Python of a page on the lines where the page has it; all other lines are empty."""
    lines = [""] * (text.count("\n") + 1)
    for block in BLOCK.finditer(text):
        if block[2] == "pycon":
            first = text[: block.start(3)].count("\n")
            lines[first : first + block[3].count("\n")] = block[3].splitlines()
    return "\n".join(lines)


def marked(page):
    marks = [pytest.mark.slow if page.stem in OFTEN else pytest.mark.nightly]
    marks += [pytest.mark.integration] if page.stem in EMBEDDED else []
    return pytest.param(page, id=page.stem, marks=marks)


@pytest.mark.parametrize("page", [marked(page) for page in PAGES])
def test_a_page_prints_what_its_code_prints(page, tmp_path, monkeypatch, unchecked):
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for _, kind, content in BLOCK.findall(text):
        if kind == "yaml":
            name = re.match(r"# ([\w/]+\.yaml);", content)[1]
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
    told: list[str] = []
    test = doctest.DocTestParser().get_doctest(code(text), {}, page.stem, str(page), 0)
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=told.append)
    assert not told, "".join(told)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_all_python_of_a_page_is_run(page):
    text = page.read_text(encoding="utf-8")
    assert {kind for _, kind, _ in BLOCK.findall(text)} <= {"", "pycon", "yaml"}
    assert doctest.DocTestParser().get_examples(code(text))


def test_ten_questions_and_four_edges_have_answers_of_ten_lines_at_most():
    (page,) = (page for page in PAGES if page.stem == "questions")
    answers = page.read_text(encoding="utf-8").split("\n## ")[1:]
    assert len(answers) == 12, "metric and positions of one's own are in one answer"
    for block in (block for answer in answers for block in BLOCK.finditer(answer) if block[2] == "pycon"):
        assert len(re.findall(r"^(?:>>>|\.\.\.) ", block[3], re.MULTILINE)) <= 10, block[3]
