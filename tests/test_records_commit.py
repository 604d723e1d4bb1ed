"""The commit and whether it was changed: as git says, and without running what the repository's configuration names."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from initlab.records.commit import Checkout, find_checkout, head_commit, is_dirty

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")

CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
WHO = ["-c", "user.name=x", "-c", "user.email=x@y", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main"]


def git(place, *words):
    done = subprocess.run(["git", *WHO, *words], cwd=place, env=CLEAN, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def repository(place, **files):
    place.mkdir(parents=True, exist_ok=True)
    git(place, "init", "-q", ".")
    for name, text in {"tracked": "one\n", **files}.items():
        (place / name).write_text(text)
    git(place, "add", "-A")
    git(place, "commit", "-q", "-m", "first")
    return place


def found(place):
    checkout = find_checkout(place)
    commit = head_commit(checkout)
    return commit, is_dirty(checkout, commit)


def test_the_commit_is_gits_and_a_change_is_seen(tmp_path):
    place = repository(tmp_path / "r")
    commit = git(place, "rev-parse", "HEAD")
    (place / "below" / "deep").mkdir(parents=True)
    (place / "new").write_text("not tracked")
    os.utime(place / "tracked")  # touched, and the same
    assert found(place) == found(place / "below" / "deep") == (commit, False)
    (place / "tracked").write_text("two\n")
    assert found(place) == (commit, True)
    git(place, "add", "tracked")
    assert found(place) == (commit, True)
    (place / "tracked").unlink()
    assert found(place) == (commit, True)


def test_packed_detached_linked_and_renamed_are_followed(tmp_path):
    place = repository(tmp_path / "r")
    first = git(place, "rev-parse", "HEAD")
    git(place, "worktree", "add", "-q", "-b", "side/branch", str(tmp_path / "w"))
    (tmp_path / "w" / "tracked").write_text("other\n")
    git(tmp_path / "w", "commit", "-q", "-am", "second")
    second = git(tmp_path / "w", "rev-parse", "HEAD")
    assert found(tmp_path / "w") == (second, False)
    for kept in (False, True):
        if kept:
            git(place, "pack-refs", "--all")
            assert not (place / ".git" / "refs" / "heads" / "main").exists()
        assert found(place) == (first, False)
        assert found(tmp_path / "w") == (second, False)
    git(place, "symbolic-ref", "refs/heads/alias", "refs/heads/side/branch")
    git(place, "symbolic-ref", "HEAD", "refs/heads/alias")
    assert head_commit(find_checkout(place)) == second
    git(place, "checkout", "-q", "--detach", first)
    assert found(place) == (first, False)


def test_a_submodule_has_a_commit_of_its_own(tmp_path):
    inner, outer = repository(tmp_path / "inner"), repository(tmp_path / "outer")
    git(outer, "submodule", "add", "-q", str(inner), "part")
    git(outer, "commit", "-q", "-m", "with a part")
    assert found(outer / "part") == (git(inner, "rev-parse", "HEAD"), False)
    assert found(outer) == (git(outer, "rev-parse", "HEAD"), False)


def test_commits_of_either_length(tmp_path):
    (tmp_path / "r").mkdir()
    try:
        git(tmp_path / "r", "init", "-q", "--object-format=sha256", ".")
    except subprocess.CalledProcessError:
        pytest.skip("this git has commits of one length")
    commit, changed = found(repository(tmp_path / "r"))
    assert (len(commit), changed) == (64, False)


@pytest.mark.parametrize(
    "head",
    ["ref: refs/heads/../../../outside", "ref: /outside", "ref: refs/heads/none", "ref: HEAD", "", "x" * 10**6, "\0"],
)
def test_a_head_that_names_no_commit_of_the_repository_is_none(tmp_path, head):
    place = repository(tmp_path / "r")
    (tmp_path / "outside").write_text("0" * 40)
    (place / ".git" / "HEAD").write_text(head)
    checkout = find_checkout(place)
    assert checkout is None or head_commit(checkout) is None


def test_neither_a_pipe_nor_a_circle_holds_it_up(tmp_path):
    place = repository(tmp_path / "r")
    (place / ".git" / "refs" / "heads" / "main").write_text("ref: refs/heads/main")
    assert head_commit(find_checkout(place)) is None
    (place / ".git" / "HEAD").unlink()
    os.mkfifo(place / ".git" / "HEAD")
    assert find_checkout(place) is None
    assert find_checkout(tmp_path) is None


def test_a_current_directory_that_is_gone_and_a_full_disk_are_no_errors(tmp_path, monkeypatch):
    place = repository(tmp_path / "r")
    commit = git(place, "rev-parse", "HEAD")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryDirectory", full)
    assert found(place) == (commit, None)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert find_checkout() is None


# --- code that was not asked for


def plant(place):
    """Make every setting that may name a program name one that leaves a file behind."""
    hooks = place / ".git" / "planted-hooks"
    hooks.mkdir()
    for name in ("post-index-change", "fsmonitor-watchman", "pre-commit", "post-checkout", "reference-transaction"):
        for home in (hooks, place / ".git" / "hooks"):
            home.mkdir(exist_ok=True)
            (home / name).write_text(script(place, f"hook-{name}"))
            (home / name).chmod(0o755)
    included = place / ".git" / "included"
    program = place / ".git" / "program"
    program.write_text(script(place, "program"))
    program.chmod(0o755)
    text = f"""
[core]
    fsmonitor = {program}
    hooksPath = {hooks}
    pager = {program}
    editor = {program}
    sshCommand = {program}
    askPass = {program}
    gitProxy = {program}
    untrackedCache = true
    alternateRefsCommand = {program}
[diff]
    external = {program}
[diff "evil"]
    command = {program}
    textconv = {program}
[filter "evil"]
    clean = {program}
    smudge = {program}
    required = true
[filter "process"]
    process = {program}
[merge "evil"]
    driver = {program}
[alias]
    status = !{program}
    rev-parse = !{program}
[credential]
    helper = !{program}
[submodule]
    recurse = true
[status]
    submoduleSummary = true
[include]
    path = {included}
"""
    included.write_text(text.partition("[include]")[0])
    with open(place / ".git" / "config", "a") as file:
        file.write(text)
    with open(place / ".git" / "info" / "attributes", "w") as file:
        file.write("* filter=evil diff=evil merge=evil\n")
    os.utime(place / "tracked", (1, 1))  # its content has to be looked at
    return program


def script(place, name):
    return f"#!/bin/sh\ntouch {place.parent}/ran-{name}\ncat\n"


def variables(program):
    names = ("GIT_EXTERNAL_DIFF", "GIT_PAGER", "GIT_SSH_COMMAND", "GIT_EDITOR", "GIT_ASKPASS", "PAGER", "EDITOR")
    counted = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.fsmonitor", "GIT_CONFIG_VALUE_0": str(program)}
    return {**dict.fromkeys(names, str(program)), **counted, "GIT_CONFIG_PARAMETERS": f"'core.fsmonitor'='{program}'"}


def ran(tmp_path):
    return sorted(path.name for path in tmp_path.glob("ran-*"))


@pytest.mark.parametrize("part", [False, True], ids=["plain", "with a submodule"])
def test_nothing_runs_that_a_repository_or_the_environment_names(tmp_path, monkeypatch, part):
    place = repository(tmp_path / "r", **{".gitattributes": "tracked filter=process diff=evil\n"})
    if part:
        inner = repository(tmp_path / "inner")
        git(place, "submodule", "add", "-q", str(inner), "part")
        git(place, "commit", "-q", "-m", "with a part")
        shutil.copy(plant(place), tmp_path / "program")
        with open(place / ".git" / "modules" / "part" / "config", "a") as file:
            file.write(f"[core]\n    fsmonitor = {tmp_path / 'program'}\n")
    else:
        plant(place)
    commit = (place / ".git" / "refs" / "heads" / "main").read_text().strip()
    # What is planted does run where git is asked as before.
    subprocess.run(["git", "status", "--porcelain"], cwd=place, env=CLEAN, capture_output=True, check=False)
    assert ran(tmp_path)
    for path in tmp_path.glob("ran-*"):
        path.unlink()
    for name, value in variables(place / ".git" / "program").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    assert found(place) == (commit, False)
    (place / "tracked").write_text("two\n")
    assert found(place) == (commit, True)
    assert ran(tmp_path) == []


def test_a_git_of_the_current_directory_is_not_taken(tmp_path, monkeypatch):
    place = repository(tmp_path / "r")
    (place / "git").write_text(script(place, "git"))
    (place / "git").chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([".", os.environ["PATH"]]))
    monkeypatch.chdir(place)
    assert found(Path.cwd())[1] is None
    assert ran(tmp_path) == []


def test_without_git_the_commit_is_known_all_the_same(tmp_path, monkeypatch):
    place = repository(tmp_path / "r")
    commit = git(place, "rev-parse", "HEAD")
    monkeypatch.setenv("PATH", "")
    assert found(place) == (commit, None)
    monkeypatch.undo()
    assert is_dirty(Checkout(place, tmp_path, tmp_path), commit) is None
