"""The private interfaces of Hydra and argparse: each exists, and without it the result is the same."""

import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra

from initlab.cli.train import refuse_unknown_flags
from initlab.config import fast_compose, hydra_interface
from initlab.config.compose import isolated_hydra
from initlab.config.fast_compose import Composer
from initlab.config.grid import compose_grid
from initlab.config.own_options import TargetOptions, register_own_options
from initlab.errors import UserError

MISSING = "this release of {} lacks {}: {}. See initlab/config/hydra_interface.py."


@pytest.fixture
def loader() -> ConfigLoader:
    with isolated_hydra():
        return GlobalHydra.instance().config_loader()


def test_hydra_has_the_functions_of_a_composition(loader):
    lacks = MISSING.format("hydra-core", "a function of its composition", "grids are composed at 57 ms a job")
    assert hydra_interface.compose_functions(loader) is not None, lacks


def test_hydra_has_a_parser_of_its_flags():
    parser = hydra_interface.command_line_parser()
    assert parser is not None, MISSING.format("hydra-core", "get_args_parser", "unknown flags fill a page")
    flags = hydra_interface.flags_of(parser)
    assert {"--multirun", "-m", "--cfg", "--config-dir"} <= {*flags}, MISSING.format(
        "Python", "argparse's list of actions", "unknown flags are not named"
    )


def test_hydra_has_a_dictionary_of_groups():
    register_own_options()
    lacks = MISSING.format("hydra-core", "ConfigStore.repo", "init=module:function is unknown")
    assert isinstance(hydra_interface.config_store_groups().get("init"), TargetOptions), lacks


@pytest.mark.parametrize("line", ["init=he_normal,zeros seed=0,1", "model=resnet,mlp optim=adam optim.beta1=0.8,0.9"])
def test_a_grid_is_the_same_without_the_functions(monkeypatch, line):
    before = [config.plain() for config in compose_grid(line.split())[0]]
    monkeypatch.setattr(fast_compose, "compose_functions", lambda loader: None)
    monkeypatch.setattr(Composer, "base", None)  # nothing asks for it
    assert [config.plain() for config in compose_grid(line.split())[0]] == before


def test_the_functions_are_missed_one_by_one(loader, monkeypatch):
    from hydra._internal import config_loader_impl as real

    monkeypatch.delattr(real.ConfigLoaderImpl, "_apply_overrides_to_config")
    assert hydra_interface.compose_functions(loader) is None
    assert hydra_interface.compose_functions(object()) is None


def test_flags_are_left_to_hydra_without_its_parser(monkeypatch):
    from hydra._internal import utils

    with pytest.raises(UserError, match="--bogus is not a flag"):
        refuse_unknown_flags(["--bogus"])
    monkeypatch.delattr(utils, "get_args_parser")
    assert hydra_interface.command_line_parser() is None
    refuse_unknown_flags(["--bogus"])
