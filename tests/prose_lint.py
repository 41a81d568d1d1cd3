"""Keep the project's English and code readable: `python -m tests.prose_lint [FILES...]`.

In: Python, Markdown, YAML and template files; without arguments, all of the project's. Out: one
line `file:line: words -> what to write instead` for each finding, and exit status 1 if there is
any. `--statistics` adds counts by rule, and per 1000 lines of the four rooms' code.
Lines of code over 100 characters are left to ruff, which `make lint` runs as well.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
ROOMS = ("data_pipeline", "pretrain", "eval", "launch")
FOLDERS = (*ROOMS, "tests", "benchmarks", "docs")
SUFFIXES = (".py", ".md", ".yaml", ".j2")
PROSE_WIDTH = 120

# "There is no X" is English, and so are comparisons such as "is no longer" or "is no more than".
_COMPARED = r"(?:longer|more|less|better|worse|different)\b|\w+er than\b"
PHRASES = {
    rf"(?<!there\s)\b(?:is|are|was|were) no (?!{_COMPARED})[a-z]+": 'say "is not a ..."',
    r", of wh(?:ich|om)\b": 'start a new sentence, or say "which"',
    r"\bsaid to be\b": "state it, or say who says it",
    r"\bwhat is wanted\b": "name the thing",
    r"\bwants of\b": 'say "needs from"',
    r"\btells? nothing\b": "say what is missing",
    r"\bas (?:it|they) came out\b": "name the result",
    r"\bchoose of\b": 'say "choose one of"',
    r"\bof a training\b(?! (?:batch|file|image|run|set|step)s?\b)": 'say "of a training run"',
    r"\b(?:has|have) not(?=[.,;:)])": 'say "does not have"',
    r"\bstands? (?:in(?! for| the way)|at|beside|apart|there)\b": 'say "is", or "is stored"',
    r"\bso many\b(?! \w+ that)": "name the number",
    r"\bknows? no\b": 'say "does not know"',
    r"\bpictures?\b": 'say "image"',
}
# Tests only. A code such as "R18." points into a document that the reader does not have.
CODES = {
    r"(?-i:(?:\A|\()[RVGTLMEC]\d+(?:\.\d+)*(?=[.:;,)]| and [RVGTLMEC]\d))": "say what is tested",
    r"\bspec(?:ification)? \d[\d.]*": "say what is tested",
}
# Strings with a space that are data: parts of generated captions and statements.
DATA = re.compile(r"a picture of|(one|both|no|left) pictures? shows?|than the right one")
EMPTY_NAMES = {
    *("found", "one", "kept", "of", "known"),
    *("said", "asked", "own", "wanted", "many"),
}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Finding(NamedTuple):
    """Words to rewrite: their line, what to do, and the rule that they break."""

    line: int
    words: str
    hint: str
    rule: str = "phrase"


def check(path: Path) -> list[Finding]:
    """Return what is to be rewritten in one file, by line."""
    text = path.read_text("utf-8")
    if path.suffix == ".py":
        in_tests = "tests" in path.parts
        phrases = PHRASES | CODES if in_tests else PHRASES
        prose = [*_docstrings_and_messages(text, in_tests), *_comments(text)]
        return sorted([*_code(text), *_search(prose, phrases)])
    if path.suffix == ".md":
        # Everything but prose becomes blank, so that lines keep their numbers.
        text = re.sub(r"(?ms)^```.*?^```|^    .*?$", _blank, text)
        return sorted([*_wide_lines(text), *_search([(1, text)], PHRASES)])
    not_prose = r"(?m)^[^#\n]*" if path.suffix == ".yaml" else r"(?s)<[^>]*>|{{.*?}}|{%.*?%}|{#|#}"
    return sorted(_search([(1, re.sub(not_prose, _blank, text))], PHRASES))


def _search(prose: list[tuple[int, str]], phrases: dict[str, str]) -> Iterator[Finding]:
    """Look for phrases in pieces of prose, each given with the number of its first line."""
    for first_line, text in prose:
        # Code in the middle of prose keeps its names.
        text = re.sub(r"(?s)``.+?``|`[^`]+`", _blank, text)
        for phrase, hint in phrases.items():
            # A phrase may run on in the next line, in a comment behind another "#".
            pattern = phrase.replace(" ", r"[\s#]+")
            for match in re.finditer(pattern, text, re.IGNORECASE):
                words = re.sub(r"[\s#]+", " ", match[0]).strip(" ,(")
                yield Finding(first_line + text.count("\n", 0, match.start()), words, hint)


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def _docstrings_and_messages(text: str, in_tests: bool) -> Iterator[tuple[int, str]]:
    docstrings = set()
    parts_of_f_strings = set()
    for node in ast.walk(ast.parse(text)):  # parents come before their children
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            docstrings.add(node.body[0].value)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")
        if node in parts_of_f_strings:
            continue
        if isinstance(node, ast.JoinedStr):
            parts_of_f_strings.update(ast.walk(node))
            string = ""
            for part in node.values:
                string += part.value if isinstance(part, ast.Constant) else "X"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            string = node.value
        else:
            continue
        # Strings of tests are often data; one without a space is a key, an option or a file name.
        is_message = not in_tests and " " in string.strip() and not DATA.search(string)
        if node in docstrings or is_message:
            yield node.lineno, string


def _comments(text: str) -> Iterator[tuple[int, str]]:
    """Yield each block of comments on adjacent lines as one piece."""
    first, last, block = 0, 0, ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if block and line == last + 1:
            block += "\n" + token.string
        else:
            yield first, block
            first, block = line, token.string
        last = line
    yield first, block


def _wide_lines(text: str) -> Iterator[Finding]:
    for number, line in enumerate(text.splitlines(), 1):
        without_links = re.sub(r"\]\([^)]*\)", "]", line).rstrip()
        if len(without_links) > PROSE_WIDTH and not line.lstrip().startswith("|"):
            hint = f"break the line at {PROSE_WIDTH}"
            yield Finding(number, f"{len(without_links)} characters", hint, "wide prose")


def _code(text: str) -> Iterator[Finding]:
    tree = ast.parse(text)
    # Fields of a class may be keys of a file format, whose names are not free.
    fields = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            fields |= {id(child.target) for child in node.body if isinstance(child, ast.AnnAssign)}
    for node in ast.walk(tree):
        if isinstance(node, COMPREHENSIONS):
            if _nests(node):
                yield Finding(node.lineno, "nested comprehension", "write a loop", "nested")
            elif node.lineno != node.end_lineno:
                hint = "write a loop, or name a part of it"
                yield Finding(node.lineno, "comprehension over several lines", hint, "long")
        name = None
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = None if id(node) in fields else node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        if name in EMPTY_NAMES:
            yield Finding(node.lineno, f"variable {name!r}", "say what it is", "name")


def _nests(comprehension: ast.AST) -> bool:
    # Two `for` in a row, on one line, still read from left to right.
    inner = list(ast.walk(comprehension))[1:]
    return any(isinstance(node, COMPREHENSIONS) for node in inner)


def project_files() -> list[Path]:
    """Return every file that the lint covers."""
    files = list(ROOT.glob("*.md"))
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            is_data = (ROOT / "tests/data") in path.parents
            if path.suffix in SUFFIXES and not is_data:
                files.append(path)
    return files


def _print_statistics(findings: list[Finding]) -> None:
    for rule, count in Counter(finding.rule for finding in findings).most_common():
        print(f"{count:6} {rule}")
    counts: Counter[str] = Counter()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text("utf-8")
            counts["lines"] += text.count("\n")
            for _, block in _comments(text):
                counts["comments"] += block.count("\n") + bool(block)
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, COMPREHENSIONS):
                    counts["comprehensions"] += 1
                    counts["nested"] += _nests(node)
    for what in ("comprehensions", "nested", "comments"):
        print(f"{1000 * counts[what] / counts['lines']:6.1f} {what} per 1000 lines of the rooms")


def main(arguments: list[str] | None = None) -> int:
    """Print the findings of the named files, or of all; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.prose_lint", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="files to check (default: all)")
    parser.add_argument("--statistics", action="store_true", help="print counts as well")
    options = parser.parse_args(arguments)
    findings: list[Finding] = []
    for path in options.files or project_files():
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        for finding in check(path):
            print(f"{shown}:{finding.line}: {finding.words} -> {finding.hint}")
            findings.append(finding)
    if options.statistics:
        _print_statistics(findings)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
