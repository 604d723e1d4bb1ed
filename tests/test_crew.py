"""What a thread keeps of the parts that it computes."""

from types import SimpleNamespace

import torch

from initlab.training.threads import ThreadTeam


def test_what_was_made_of_a_part_is_kept_while_its_members_stay_and_let_go_when_they_leave():
    made = []
    first, second = SimpleNamespace(members=[0, 1]), SimpleNamespace(members=[2, 3])

    def make() -> object:
        made.append(object())
        return made[-1]

    with ThreadTeam(4, torch.device("cpu")) as crew:
        one, two = crew.made_of(first, make), crew.made_of(second, make)
        assert crew.made_of(first, make) is one
        assert crew.made_of(second, make) is two
        assert len(made) == 2
        first.members = [1]
        assert crew.made_of(first, make) not in (one, two)
        assert len(made) == 3
        first.members = []
        assert crew.made_of(second, make) is two
        assert [kept[2] for kept in crew.own.made.values()] == [two]
