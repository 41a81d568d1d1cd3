"""The prose lint reports what is worth rewriting, on its line, and nothing else."""

from pathlib import Path

import pytest

from tests.prose_lint import check, main, project_files


def findings(folder: Path, name: str, text: str) -> list[tuple[int, str]]:
    path = folder / name
    path.write_text(text, "utf-8")
    return [(finding.line, finding.words) for finding in check(path)]


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("It is no split.", "is no split"),
        ("Labels that are no labels.", "are no labels"),
        ("Two shards, of which one is empty.", "of which"),
        ("A name is said to be unique.", "said to be"),
        ("Ten Pictures.", "Pictures"),
        ("A block that the tower has not.", "has not"),
        ("The label stands in the record.", "stands in"),
        ("Groups of so many images.", "so many"),
    ],
)
def test_phrases_are_reported_in_prose_of_every_kind(tmp_path, sentence, words):
    assert findings(tmp_path, "a.py", f'"""First line.\n\n{sentence}\n"""\n') == [(3, words)]
    assert findings(tmp_path, "a.py", f"x = 1\ny = 2  # {sentence}\n") == [(2, words)]
    assert findings(tmp_path, "a.py", f'raise ValueError(f"{{name}}: {sentence}")\n') == [
        (1, words)
    ]
    assert findings(tmp_path, "a.md", f"# Title\n\n{sentence}\n") == [(3, words)]
    assert findings(tmp_path, "a.yaml", f"key: 1  # {sentence}\n") == [(1, words)]
    assert findings(tmp_path, "a.j2", f"<p>\n{sentence}</p>\n") == [(2, words)]


@pytest.mark.parametrize(
    "sentence",
    [
        "There is no split.",
        "It is no longer open, and is no more than a name.",
        "One of which is empty.",
        "It stands in for another, and there are so many images that it fails.",
        "Pass `picture` or ``--pictures``.",
    ],
)
def test_plain_english_and_code_inside_prose_are_not_reported(tmp_path, sentence):
    assert findings(tmp_path, "a.py", f'"""{sentence}"""\n') == []
    assert findings(tmp_path, "a.md", sentence) == []


def test_a_phrase_that_runs_over_two_lines_is_reported(tmp_path):
    assert findings(tmp_path, "a.py", "# This name is\n# no split.\n") == [(1, "is no split")]


def test_keys_and_strings_of_tests_are_data(tmp_path):
    (tmp_path / "tests").mkdir()
    assert findings(tmp_path, "a.py", 'record["pictures"] = 1\n') == []
    assert findings(tmp_path / "tests", "a.py", 'caption = "a red picture"\n') == []


def test_codes_of_unseen_documents_are_reported_in_tests_only(tmp_path):
    (tmp_path / "tests").mkdir()
    text = 'def test_ties():\n    """R18."""\n\n\ndef test_recall():\n    """R@1 of chance."""\n'
    assert findings(tmp_path / "tests", "a.py", text) == [(2, "R18")]
    assert findings(tmp_path, "a.py", text) == []


def test_a_test_name_is_prose(tmp_path):
    text = "def test_a_file_that_is_no_split_is_refused():\n    pass\n"
    assert findings(tmp_path, "a.py", text) == [(1, "is no split")]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = [a for b in c for a in b]\n", []),
        ("x = [len([a for a in b]) for b in c]\n", ["nested comprehension"]),
        ("x = {\n    a: 1\n    for a in b\n}\n", ["comprehension over several lines"]),
        ("x = [a for a in b]\n", []),
        ("for one in rows:\n    pass\n", ["variable 'one'"]),
        ("def f(known):\n    pass\n", ["variable 'known'"]),
        ("row.found = {'kept': 1}\n", []),
    ],
)
def test_code_that_is_hard_to_read_is_reported(tmp_path, code, words):
    assert [found_words for _, found_words in findings(tmp_path, "a.py", code)] == words


def test_prose_is_at_most_120_characters_wide_apart_from_tables_links_and_code(tmp_path):
    wide = "word " * 25
    assert findings(tmp_path, "a.md", f"{wide}\n") == [(1, "124 characters")]
    link = "a [link](" + "x" * 120 + ")"
    assert findings(tmp_path, "a.md", f"| {wide} |\n{link}\n```\n{wide}\n```\n    {wide}\n") == []


def test_the_command_names_file_and_line_and_fails(tmp_path, capsys):
    path = tmp_path / "a.md"
    path.write_text("One.\nIt is no split.\n", "utf-8")
    assert main([str(path)]) == 1
    assert capsys.readouterr().out == f'{path}:2: is no split -> say "is not a ..."\n'
    path.write_text("One.\n", "utf-8")
    assert main([str(path)]) == 0


def test_data_of_tests_is_not_linted():
    files = project_files()
    assert {"README.md", "order.py", "prose_lint.py"} <= {path.name for path in files}
    assert not any("/tests/data/" in path.as_posix() for path in files)
