"""A whole computation on disk: weights, optimizer, where the loop stands, and how long every file was."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from initlab.config import Config
from initlab.config.naming import digest
from initlab.ensemble import Ensemble, Part
from initlab.records.files import door
from initlab.training import OPTIMIZERS, State, Stopped

FORMAT = 1
RECORDED = ("log", "train")  # not all of it is in a result's hash, but the files of one run must not mix two of them


class Unusable(ValueError):
    """A checkpoint that cannot be gone on from; the message says why."""


def same_run(config: Config) -> list[Any]:
    """Return what a checkpoint and a configuration must share to be one run."""
    plain = config.plain()
    return [digest(config), *(plain[key] for key in RECORDED)]


def save(path: Path, ensemble: Ensemble, state: State, configs: Sequence[Config], members: list[dict]) -> None:
    """Write a checkpoint beside, then rename it over the last one.

    Arguments: `members` are what each member keeps of its own, in plain values.

    Raises UserError when the disk is full or the directory cannot be written; the last checkpoint is left as it was.
    """
    plain = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in ("slots", "stopped")}
    payload = {
        "format": FORMAT,
        "runs": [same_run(config) for config in configs],
        "state": plain,
        "stopped": [list(astuple(stop)) for stop in state.stopped.values()],
        "parts": [saved_part(part, slots) for part, slots in zip(ensemble.parts, state.slots, strict=True)],
        "members": members,
    }
    beside = path.with_name(f".{path.name}.tmp")
    with door(path.parent):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(beside, "wb") as file:
                torch.save(payload, file)
            os.replace(beside, path)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                beside.unlink()
            # torch reports a disk that fills up as an error of its own archive.
            cause = error if isinstance(error, OSError) else error.__context__
            raise cause if isinstance(cause, OSError) else error from None


def saved_part(part: Part, slots: dict[str, list[Tensor]]) -> dict[str, Any]:
    """Return the tensors of one part, on the CPU, each with a storage of its own."""
    return {
        "members": list(part.members),
        "stacked": part.stacked,
        "names": list(part.names),
        "weights": {name: own_copy(value) for name, value in part.module.state_dict().items()},
        "slots": {slot: [own_copy(value) for value in values] for slot, values in slots.items()},
    }


def own_copy(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU that shares its storage with nothing larger than itself."""
    tensor = tensor.detach().cpu()
    return tensor if tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() else tensor.clone()


@dataclass
class Checkpoint:
    """What was read back: the loop's state without its slots, every member's own, and the tensors by member."""

    state: dict[str, Any]
    stopped: dict[int, Stopped]
    members: list[dict[str, Any]]
    places: dict[int, tuple[dict[str, Any], int]]

    def fill_(self, module: nn.Module, member: int) -> nn.Module:
        """Load one member's weights and buffers into a module and return it."""
        part, position = self.places[member]
        module.load_state_dict({k: v[position] if part["stacked"] else v for k, v in part["weights"].items()})
        return module

    def state_for(self, ensemble: Ensemble, optimizer: str) -> State:
        """Return the state of the loop for an ensemble of these members, however it is divided into parts."""
        slots = [OPTIMIZERS[optimizer].fresh_state(part.parameters) for part in ensemble.parts]
        for part, fresh in zip(ensemble.parts, slots, strict=True):
            for slot, tensors in fresh.items():
                for name, tensor in zip(part.names, tensors, strict=True):
                    for position, member in enumerate(part.members):
                        (tensor[position] if part.stacked else tensor).copy_(self.slot(member, slot, name))
        return State(**self.state, stopped=dict(self.stopped), slots=slots)

    def slot(self, member: int, slot: str, name: str) -> Tensor:
        """Return one member's tensor of one slot."""
        part, position = self.places[member]
        tensor: Tensor = part["slots"][slot][part["names"].index(name)]
        return tensor[position] if part["stacked"] else tensor


def load(path: Path, configs: Sequence[Config]) -> Checkpoint:
    """Read a checkpoint of just these runs; tensors and plain values only, no code.

    Raises Unusable when the file is damaged, of another version, or of other runs.
    """
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
        if payload["format"] != FORMAT:
            raise Unusable(f"it has format {payload['format']}, this version writes {FORMAT}")
        if payload["runs"] != [same_run(config) for config in configs]:
            raise Unusable("it belongs to other runs, or they are recorded otherwise now")
        stops = [Stopped(*values) for values in payload["stopped"]]
        places = {m: (part, k) for part in payload["parts"] for k, m in enumerate(part["members"])}
        if sorted(places) != list(range(len(configs))):
            raise Unusable("it does not hold every member")
        return Checkpoint(payload["state"], {s.member: s for s in stops}, payload["members"], places)
    except Unusable:
        raise
    except Exception as error:
        # A torn file fails anywhere between unzipping and unpickling: whatever it raises, it is no checkpoint.
        raise Unusable(f"it cannot be read ({(str(error).splitlines() or [type(error).__name__])[0]})") from error
