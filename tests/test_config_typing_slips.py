"""What is typed wrongly in ways that people do: every message leads to what works, and what it writes does work."""

import re
import shlex
import sys

import pytest

import initlab
from initlab.cli.main import main
from initlab.config.aliases import KEY_ALIASES
from initlab.config.compose import compose_config
from initlab.config.grid import compose_grid
from initlab.config.help import known_keys
from initlab.config.overrides import canonical_overrides
from initlab.config.schema import GROUPS
from initlab.config.typing_slips import add_quotes, key_meant_by, refuse_slips, split_override
from initlab.errors import UserError


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """Type a line after `initlab`; return its exit code, and what it said."""
    monkeypatch.chdir(tmp_path)

    def call(line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["initlab", *shlex.split(line)])
        with pytest.raises(SystemExit) as left:
            main()
        shown = capsys.readouterr()
        return int(left.value.code or 0), shown.err + shown.out

    return call


SLIPS = [
    ("train init=zeros, ones", "`init=zeros, ones` has a blank at which the shell splits it: write init=zeros,ones."),
    ("train init = zeros", "write init=zeros."),
    ("train init= zeros", "write init=zeros."),
    ("train init =zeros", "write init=zeros."),
    ("train seed=1 ,2", "write seed=1,2."),
    ("train width=[16, 8] depth=2", "write 'width=[16,8]'."),
    ("train -m sweep.grids=[{init: zeros}, {init: ones}] seed=0", "write 'sweep.grids=[{init:zeros},{init:ones}]'."),
    ("train -m seed=0 1 2", "join them by a comma without a blank, seed=0,1, in train.py with -m"),
    ("train -m init=zeros ones", "join them by a comma without a blank, init=zeros,ones"),
    ("train -m sweep.name=my run", "write 'sweep.name=my run', in quotes"),
    ("train --init he_normal", "--init he_normal is not a flag: keys are written without dashes, init=he_normal."),
    ("train --init=he_normal", "keys are written without dashes, init=he_normal."),
    ("train --lr 0.1", "optim.lr=0.1."),
    ("train --batch-size 32", "train.batch_size=32."),
    ("train -depth 3", "depth=3."),
    ("train --depth -m", "depth=…."),
    ("train -m --seed 0,1", "seed=0,1."),
    ("predict --depth 50", "depth=50."),
    ("predict --init=he", "init=he."),
    ("predict init=zeros, ones", "write init=zeros,ones."),
    ("train init==zeros", "has = twice: write init=zeros."),
    ("train init=zeros,", "has a comma with nothing beside it: write init=zeros."),
    ("train -m init=zeros,,ones", "write init=zeros,ones."),
    ("train -m seed=1..5", "a range is written 'seed=range(1,6)', with -m."),
    ("train -m seed=1-5", "'seed=range(1,6)'"),
    ("train depth=3.0", "depth=3.0 must be a whole number"),
    ("train -m optim.lr=logspace(-3,0)", "there is no function logspace(…): list the values"),
    ("train é=3", "é is not a key"),
    ("train scheme=he", "Did you mean 'init'?"),
    ("train lr=0.1", "Did you mean 'optim.lr'?"),
    ("train learning_rate=0.1", "Did you mean 'optim.lr'?"),
    ("train activation=relu", "Did you mean 'act'?"),
    ("train optimizer=adam", "Did you mean 'optim'?"),
    ("train epochs=3", "Did you mean 'train.epochs'?"),
    ("train help", "write --help."),
    ("train --config-dir afile", "give a directory that holds files of options"),
    ("sweep init=zeros", "Write `initlab train -m …`."),
    ("table", "`initlab table --help` explains it."),
    ("table afile", "afile is a file: give the directory of its run or sweep"),
    ("report afile", "afile is a file: give the directory of its run or sweep"),
    ("train data=mnist data.root=afile", "data.root"),
    ("train hydra.run.dir=afile data=gaussian", "afile cannot be written (File exists): choose another directory"),
    (
        "train -m sweep.root=afile data=gaussian seed=0,1",
        "cannot be written (Not a directory): choose another directory",
    ),
    ("coordinates --widths 8 16", "--widths 8,16."),
    ("reprot made", "Did you mean 'report'"),
]


@pytest.mark.parametrize(("line", "says"), SLIPS)
def test_a_slip_is_one_sentence_with_what_works(typed, tmp_path, line, says):
    (tmp_path / "afile").touch()
    code, said = typed(line)
    assert code == 2
    assert says in said
    assert said.startswith("initlab: ")
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["afile"]


WRITES = re.compile(r"write ('?)(?P<grid>\w.*)\1\.$|dashes, (?P<flag>[\w.]+=\w+)\.$")
WRITTEN = [
    found["grid"] or found["flag"]
    for line, says in SLIPS
    if line.startswith("train ") and (found := WRITES.search(says))
]


def test_several_messages_write_what_to_type():
    assert len(WRITTEN) >= 8


@pytest.mark.parametrize("written", WRITTEN)
def test_what_a_message_writes_is_read(written):
    others = ["depth=2"] if written.startswith("width") else []
    configs, _ = compose_grid([written, *others])
    assert configs
    assert configs != compose_grid(others)[0]


def test_keys_in_other_words_are_keys():
    known = {*known_keys(), "hydra.launcher.workers", "hydra.launcher.executor"}
    assert set(KEY_ALIASES.values()) <= known
    assert not set(KEY_ALIASES) & {*known, *GROUPS}
    assert (key_meant_by("learning-rate"), key_meant_by("hepl")) == ("optim.lr", None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["init=zeros", "seed=0,1"],
        ["-m", "init=zeros,ones"],
        ["sweep.name=2024-05"],
        ["--config-dir", "mine", "-cn", "config", "init=zeros"],
        ["sweep.name=a,b"],
        ["sweep.grids=[{init: zeros}, {init: ones}]"],
        ["sweep.name='a, '", "seed=1"],
        ["width=[8", "train.steps=1"],
        ["~seed"],
        ["data.root=", "seed=1"],
        ["hydra.job.env_set={A: 1}", "seed=range(0, 3)"],
    ],
)
def test_what_is_right_is_left_alone(arguments):
    refuse_slips(arguments)
    assert split_override(arguments) == arguments[:1]


# --- letters


@pytest.mark.parametrize("name", ["é", "zoë", "日本", "a=b", "run#1", "a&b", "~x", "my run", "a;b"])
def test_names_of_any_letters_need_no_quotes(name):
    configs, directory = compose_grid([f"sweep.name={name}", f"data.root={name}", "seed=0,1"])
    assert directory.name == name
    assert {config.data["root"] for config in configs} == {name}
    assert compose_config([f"data.root={name}"]).data["root"] == name
    frame = initlab.sweep(sweep__name=name, seed=[0], dry_run=True, quiet=True)
    assert len(frame) <= 1


@pytest.mark.parametrize(
    ("typed_value", "read"),
    [
        ("'é'", "é"),
        ('"é, ü"', "é, ü"),
        ("a\\ü", "a\\ü"),
        ("ü\\", "ü\\"),
        (" é ", "é"),
    ],
)
def test_quotes_that_are_there_stay(typed_value, read):
    assert compose_config([f"data.root={typed_value}"]).data["root"].strip() == read


def test_letters_in_lists_and_sub_grids():
    assert canonical_overrides(["data.root=[é,b]"]) == ["data.root=['é',b]"]
    grids = "sweep.grids=[{init: zeros, data.root: é}, {init: ones, data.root: 'ü b'}]"
    configs, _ = compose_grid([grids])
    assert [config.data["root"] for config in configs] == ["é", "ü b"]
    configs, _ = compose_grid(["data.root=é,ü,plain"])
    assert [config.data["root"] for config in configs] == ["é", "ü", "plain"]
    assert add_quotes("${oc.env:HOME}/é") == "${oc.env:HOME}/é"


def test_columns_of_a_table_in_other_words(tmp_path, typed):
    given = {"depth": 1, "width": 4, "train.steps": 2, "data": "gaussian", "data.train_size": 300, "data.test_size": 50}
    initlab.sweep(given, init=["zeros", "ones"], sweep__root=str(tmp_path), sweep__name="made", quiet=True)
    for word, key in (("scheme", "init"), ("activation", "act"), ("layers", "depth"), ("int", "init")):
        for option in ("--by", "--across"):
            code, said = typed(f"table made {option} {word}")
            assert code == 2
            assert f"{option} names {word}, which no run has. Did you mean '{key}'?" in said
            assert "There are init, act, model" in said
            assert typed(f"table made {option} {key}")[0] == 0


def test_python_says_the_same():
    with pytest.raises(UserError, match=r"Did you mean 'optim\.lr'"):
        initlab.sweep(learning_rate=0.1, quiet=True)
