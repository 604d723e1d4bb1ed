"""The same command with nothing left to do reads its records; jobs are composed value by value; runs are few files."""

import itertools
import json
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.config_search_path import SearchPathElement
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf.errors import OmegaConfBaseException

from initlab.cli.hydra import compose_jobs
from initlab.cli.train import run_train
from initlab.config.compose import config_from_plain, plain_tree, register_config
from initlab.config.fast_compose import Composer
from initlab.config.naming import config_hash
from initlab.config.option_files import conf_dir, option_names, option_values
from initlab.config.schema import Config

QUICK = ["depth=1", "width=4", "train.steps=3", "data=gaussian", "data.train_size=300", "data.test_size=50"]
GRID = ["-m", *QUICK, "sweep.name=s", "init=he_normal,dirac,zeros", "seed=0,1"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs" / "sweeps" / "s"


# --- nothing left to do


def again(*arguments: str) -> tuple[str, list[str]]:
    """Run the command in a fresh interpreter; return what it said and which heavy libraries it loaded."""
    code = (
        "import sys\n"
        "from initlab.cli.train import run_train\n"
        f"code = run_train({[*GRID, *arguments]!r})\n"
        "print('LOADED', [name for name in ('torch', 'matplotlib', 'scipy', 'plotly') if name in sys.modules])\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, _, loaded = done.stdout.partition("LOADED ")
    return said + done.stderr, json.loads(loaded.replace("'", '"'))


def table(text: str) -> list[str]:
    return [
        line for line in text.splitlines() if line.startswith(("he_normal", "zeros", "skipped", "files", "look", "or"))
    ]


def test_nothing_left_to_do_is_said_without_torch(home, capsys):
    assert run_train(GRID) == 0
    first = capsys.readouterr().out
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    said, loaded = again()
    assert loaded == []
    assert "4 of 4 networks are done already." in said
    assert len(table(first)) >= 4
    assert table(said) == table(first)
    after = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert {p: d for p, d in after.items() if p.name != "multirun.yaml"} == {
        p: d for p, d in before.items() if p.name != "multirun.yaml"
    }


@pytest.mark.parametrize(
    "what", ["a run is gone", "a table is cut", "a summary is cut", "a wider grid", "a new version"]
)
def test_what_is_left_is_run(home, what):
    assert run_train(GRID) == 0
    run = next(home.glob("he_normal-*-s1-*"))
    more: list[str] = []
    if what == "a run is gone":
        (run / "summary.json").unlink()
    elif what == "a table is cut":
        data = (run / "metrics.csv").read_bytes()
        (run / "metrics.csv").write_bytes(data[:-5])
    elif what == "a summary is cut":
        data = (run / "summary.json").read_bytes()
        (run / "summary.json").write_bytes(data[: len(data) // 2])
    elif what == "a wider grid":
        more = ["seed=0,1,2"]
    else:
        for path in home.glob("dirac-*/summary.json"):
            path.write_text(path.read_text().replace('"initlab": "0.', '"initlab": "9.'))
    _, loaded = again(*more)
    assert "torch" in loaded
    summaries = [json.loads(path.read_bytes()) for path in home.glob("*/summary.json")]
    assert sorted({summary["status"] for summary in summaries}) == ["completed", "skipped"]
    assert len(summaries) == (9 if more else 6)


def turned(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [Path.unlink, turned, lambda path: path.write_bytes(b"")], ids=["no", "bit", "empty"]
)
@pytest.mark.parametrize("name", ["plan.json", ".plan.json", "dirac-*-s0-*/config.yaml", "zeros-*-s0-*/config.yaml"])
def test_what_is_damaged_in_a_finished_sweep_is_written_again(home, name, damage):
    assert run_train(GRID) == 0
    (path,) = home.glob(name)
    before = path.read_bytes()
    damage(path)
    assert run_train(GRID) == 0
    assert path.read_bytes() == before


def test_a_cell_that_cannot_exist_is_an_error_where_that_was_asked_for(home, capsys):
    assert run_train(GRID) == 0
    assert run_train([*GRID, "sweep.impossible=error"]) == 2
    assert "dirac" in capsys.readouterr().err


def test_another_launch_holds_a_finished_sweep_too(home, capsys):
    from initlab.sweep.locks import sweep_lock

    assert run_train(GRID) == 0
    with sweep_lock(home):
        assert run_train(GRID) == 2
    assert "is being run by" in capsys.readouterr().err


def test_what_is_left_of_groups_is_swept_away(home):
    assert run_train(GRID) == 0
    (home / ".groups").mkdir()
    (home / ".groups" / "g0001.pt").write_bytes(b"old")
    _, loaded = again()
    assert "torch" in loaded
    assert not (home / ".groups").exists()


def test_the_picture_of_a_sweep_is_drawn_again_when_it_is_gone_or_older_than_the_table(home):
    assert run_train(GRID) == 0
    (events,) = (home / "sweep").iterdir()
    events.unlink()
    assert "matplotlib" in again()[1]
    assert events.stat().st_size
    assert again()[1] == []
    table = home / "sweep.csv"
    table.write_text(table.read_text() + "\n")  # a launch that was killed before it drew
    assert "matplotlib" in again()[1]


# --- composition


@pytest.fixture(scope="module")
def hydra():
    register_config()
    setup_globals()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        loader = GlobalHydra.instance().config_loader()
    master = loader.load_configuration("config", ["hydra.sweeper.params={}"], RunMode.MULTIRUN)
    return loader, master, Composer(loader, master)


def whole(composer: Composer, overrides: list[str]) -> dict:
    composed = composer.job(overrides, 0)
    HydraConfig.instance().set_config(composed)
    return plain_tree(composed)


def random_job(draw: random.Random) -> list[str]:
    """Some options, some of their keys, some values, in any order."""
    found = []
    for group in ("init", "act", "model", "data", "optim"):
        if draw.random() < 0.6:
            name = draw.choice([option for option in option_names(group) if option != "custom"])
            found.append(f"{group}={name}")
            for key, value in (option_values(group, name) or {}).items():
                if draw.random() < 0.15 and not isinstance(value, (list, dict)):
                    found.append(f"{group}.{key}={draw.choice(['0.5', '3', 'null', 'abc', '1e-3', 'true'])}")
    more = ["seed=3", "depth=7", "width=[3,4]", "width=5", "train.steps=9", "log.every=2", "train.target_loss=1",
            "sweep.name=x", "+train.own={a:1}", "optim.lr=0.5", "~train.save", "++seed=4", "threads=2",
            "sweep.exclude=[{init:zeros}]", "experiment=he_2015", "experiment=race"]  # fmt: skip
    found += draw.sample(more, draw.randrange(4))
    draw.shuffle(found)
    return found


@pytest.mark.parametrize("seed", range(60))
def test_values_are_those_of_a_whole_composition(hydra, seed):
    _, _, composer = hydra
    overrides = random_job(random.Random(seed))
    for _ in range(2):  # what is kept must not have been touched
        values = composer.values(overrides)
        if values is None:
            break
        found = values[0]
        assert json.dumps(found) == json.dumps(whole(composer, overrides))
        found["train"]["steps"] = found["seed"] = "touched"
        for group in ("init", "optim"):
            found[group]["name"] = "touched"


def test_most_random_jobs_are_put_together_from_values(hydra):
    _, _, composer = hydra
    jobs = [random_job(random.Random(seed)) for seed in range(60)]
    refused = [job for job in jobs if composer.values(job) is None]
    assert len(refused) < 30
    for job in refused[:5]:  # what no value can be set by is an error of the whole composition, or goes through it
        with suppress(HydraException, OmegaConfBaseException):
            whole(composer, job)


def test_files_of_the_users_own_configuration_are_heeded(tmp_path):
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "mine.yaml").write_text("name: he_normal\ngain: 3.0\nsigma_b: 0.0\n")
    (tmp_path / "init" / "derived.yaml").write_text("defaults: [he_normal]\ngain: 5.0\n")
    (tmp_path / "init" / "wide.yaml").write_text("# @package _global_\nwidth: 77\ninit: {name: zeros}\n")
    (tmp_path / "init" / "referring.yaml").write_text("name: he_normal\ngain: ${depth}\nsigma_b: 0.0\n")
    register_config()
    setup_globals()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        loader = GlobalHydra.instance().config_loader()
    loader.config_search_path.get_path().insert(1, SearchPathElement("user", str(tmp_path)))
    loader.repository.initialize_sources(loader.config_search_path)
    master = loader.load_configuration("config", ["hydra.sweeper.params={}"], RunMode.MULTIRUN)
    composer = Composer(loader, master)
    for name in ("mine", "derived", "wide", "referring"):
        for more in ([], ["act=relu"], ["init.gain=2"], ["depth=3"]):
            job = [f"init={name}", *more]
            values = composer.values(job)
            assert values is None or values[0] == whole(composer, job)
    assert composer.values(["init=mine", "act=relu"]) is not None
    assert composer.values(["init=wide", "seed=1"])[0]["width"] == 77


def test_a_grid_of_all_schemes_is_composed_by_hydra_once(hydra, monkeypatch):
    loader, _, _ = hydra
    master = loader.load_configuration("config", ["hydra.sweeper.params={}", "sweep.name=depths"], RunMode.MULTIRUN)
    asked = []
    real = loader.load_sweep_config
    monkeypatch.setattr(loader, "load_sweep_config", lambda m, o: asked.append(o) or real(m, o))
    schemes = [name for name in option_names("init") if name != "custom"]
    grid = itertools.product(schemes, ("tanh", "relu"), (3, 10), range(5))
    texts = [[f"init={i}", f"act={a}", f"depth={d}", f"seed={s}", "sweep.name=depths"] for i, a, d, s in grid]
    jobs = compose_jobs(HydraContext(config_loader=loader, callbacks=None), master, texts, 0)
    assert len(jobs) == len(schemes) * 20
    assert asked == [[]]
    assert [job.config.init["name"] for job in jobs[::20]] == schemes
    assert len({job.directory for job in jobs}) == len(jobs)


def test_plain_is_a_copy_that_shares_nothing():
    config = Config(width=[3, 4], init={"name": "zeros", "list": [{"a": 1}]})
    plain = config.plain()
    plain["init"]["list"][0]["a"] = plain["width"][0] = plain["train"]["steps"] = 9
    assert config == Config(width=[3, 4], init={"name": "zeros", "list": [{"a": 1}]})
    assert config_from_plain(config.plain()) == config
    assert config_hash(config_from_plain(config.plain())) == config_hash(config)
    assert "verdict" not in plain


# --- files of a run


def inodes(directory: Path) -> int:
    return 1 + sum(1 for _ in directory.rglob("*"))


def test_a_run_of_a_sweep_is_eight_inodes(home):
    assert (
        run_train(
            [
                "-m",
                *QUICK,
                "sweep.name=s",
                "init=he_normal,lsuv,dirac",
                "act=relu",
                "optim.lr=0.01,1e29",
                "train.steps=20",
            ]
        )
        == 0
    )
    runs = [path.parent for path in home.glob("*/summary.json")]
    counts = {run.name: inodes(run) for run in runs}
    assert len(counts) == 6
    assert {json.loads((run / "summary.json").read_bytes())["status"] for run in runs} == {
        "completed",
        "diverged",
        "skipped",
    }
    assert {name: count for name, count in counts.items() if count > 8} == {}
    assert max(counts.values()) == 8


def test_what_is_left_out_of_the_log_of_a_sweep_is_in_the_summary(home):
    assert run_train(["-m", *QUICK, "sweep.name=s", "init=he_normal,lsuv"]) == 0
    (lsuv,) = home.glob("lsuv-*/summary.json")
    assert "lsuv depends on more than theory describes" in json.loads(lsuv.read_bytes())["remarks"][0]
    assert "remarks" not in (home / "sweep.csv").read_text()


def test_hydras_files_are_there_where_the_user_says_so(home):
    assert run_train([*GRID, "hydra.output_subdir=.hydra"]) == 0
    assert len(list(home.glob("*/.hydra/overrides.yaml"))) == 6


def test_hydras_own_single_run_keeps_its_files(home):
    assert run_train([*QUICK, "hydra.run.dir=one"]) == 0
    assert {path.name for path in Path("one", ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert Path("one", "run.log").exists()
