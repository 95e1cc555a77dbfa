"""What README.md and docs/ tell a reader to type is typed here, in their order; what they show is compared."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?P<language>sh|python)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"[|><&;$`*?]")
LINK = re.compile(r"\[[^\]]+\]\((?P<target>[^)\s]+)\)")


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(found["language"], found["body"]) for found in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def typed(body: str) -> list[str]:
    whole = body.replace("\\\n", "")
    return [line for line in whole.splitlines() if line.startswith(("compress ", "cat "))]


def run(command: str, folder: Path, in_shell: bool) -> None:
    """As a reader types it: `cat`, what only a shell understands, and all if asked in a process; else in this one."""
    name, *arguments = shlex.split(command)
    plain = name == "compress" and not SHELL.search(command)
    done = shell(command, folder) if in_shell or not plain else commands.compress(*arguments)
    assert done.code == 0, f"{command}\n{done.out}\n{done.err}"
    assert done.out.strip(), command


def shell(command: str, folder: Path) -> commands.Ran:
    line = command.replace("compress ", f"{sys.executable} -m compressor.cli ", 1)
    done = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True)
    return commands.Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_what_a_page_tells_to_type_works_in_its_order(page, tmp_path, monkeypatch, quick):
    follow(page, tmp_path, monkeypatch, in_shell=False)


@pytest.mark.slow
def test_what_the_readme_tells_to_type_works_in_a_shell_with_all_that_it_times(tmp_path, monkeypatch):
    follow(ROOT / "README.md", tmp_path, monkeypatch, in_shell=True)


def follow(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, in_shell: bool) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": page.stem}
    for language, body in blocks(page):
        if language == "python":
            exec(compile(body, page.name, "exec"), names)
            continue
        for command in typed(body):
            run(command, folder, in_shell)
    for name, value in names.items():
        if name.startswith("test_") and callable(value):
            value()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_files_leads_somewhere(page):
    targets = [found["target"].split("#")[0] for found in LINK.finditer(page.read_text(encoding="utf-8"))]
    missing = [target for target in targets if "://" not in target and target and not (page.parent / target).exists()]
    assert not missing


def test_the_readme_names_every_command():
    from compressor.cli.entry import app

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert f"compress {name}" in text
