"""A whole computation on disk: weights, optimizer, where the loop stands, and the checksum of every file.

A checkpoint is an archive of torch's and a last line with the checksum of all its bytes: `torch.load` compares none,
and a zip's own protect neither its headers nor its directory. The previous checkpoint is kept beside the newest.
"""

import io
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, nn

from initlab.config import Config
from initlab.config.naming import config_hash
from initlab.ensemble import Ensemble
from initlab.records.checksums import CHUNK_BYTES, Checksum
from initlab.system.files import fsync_path, make_directory, os_errors_as_user_errors
from initlab.training import State, Stopped

CHECKPOINT_FORMAT = 4
CHECKSUM_LINE = "\ninitlab checkpoint of {:020d} bytes with CRC-32 {:08x}\n"
CHECKSUM_LENGTH = len(CHECKSUM_LINE.format(0, 0))
RECORDING_KEYS = ("log", "train")  # partly not in a result's hash, but the files of one run must not mix two of them


class UnusableCheckpoint(ValueError):
    """A run cannot go on from a checkpoint; the message gives the reason."""


def run_identity(config: Config) -> list[Any]:
    """Return what a checkpoint and a configuration must share to be one run."""
    plain = config.plain()
    return [config_hash(config), *(plain[key] for key in RECORDING_KEYS)]


def previous_checkpoint(path: Path) -> Path:
    """Return where the checkpoint before the newest is kept.

    >>> previous_checkpoint(Path("g0001.pt")).name
    'g0001.before.pt'
    """
    return path.with_name(f"{path.stem}.before{path.suffix}")


def existing_checkpoints(path: Path) -> list[Path]:
    """Return the checkpoints that there are, the newest first."""
    return [each for each in (path, previous_checkpoint(path)) if each.exists()]


def remove_checkpoints(path: Path) -> None:
    """Remove the newest checkpoint and the one before."""
    for each in (path, previous_checkpoint(path)):
        each.unlink(missing_ok=True)


def save_checkpoint(
    path: Path, ensemble: Ensemble, state: State, configs: Sequence[Config], members: list[dict]
) -> None:
    """Write a checkpoint, durably: under a temporary name, then renamed; the last one becomes the previous one.

    When the disk is full or the directory cannot be written, a UserError is raised and the last one is left as it was.

    Args:
        path: where to.
        ensemble: of the networks.
        state: of the training loop.
        configs: of the networks.
        members: what each network keeps beside tensors, in plain values.
    """
    plain = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in ("slots", "stopped")}
    payload = {
        "format": CHECKPOINT_FORMAT,
        "runs": [run_identity(config) for config in configs],
        "state": plain,
        "stopped": [list(astuple(stop)) for stop in state.stopped.values()],
        "networks": [network_payload(network, state.slots.get(m, {})) for m, network in enumerate(ensemble.networks)],
        "members": members,
    }
    write_payload(path, payload)


def write_payload(path: Path, payload: dict[str, Any]) -> None:
    """Write what `load_checkpoint` reads, as `save_checkpoint` does."""
    temporary = path.with_name(f".{path.name}.tmp")
    with os_errors_as_user_errors(path.parent):
        try:
            make_directory(path.parent)
            with open(temporary, "wb") as file:
                writer = ChecksumWriter(file)
                torch.save(payload, cast(IO[bytes], writer))
                file.write(CHECKSUM_LINE.format(*astuple(writer.checksum)).encode())
            fsync_path(temporary)
            if path.exists():
                os.replace(path, previous_checkpoint(path))
            os.replace(temporary, path)
            fsync_path(path.parent)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                temporary.unlink()
            # torch reports a disk that fills up as an error of its own archive.
            cause = error if isinstance(error, OSError) else error.__context__
            raise cause if isinstance(cause, OSError) else error from None


class ChecksumWriter(io.BufferedIOBase):
    """A file to write into that computes the checksum of its bytes."""

    def __init__(self, file: IO[bytes]):
        self.file, self.checksum = file, Checksum()

    def write(self, data: Any) -> int:
        """Write, and add to the checksum."""
        self.checksum = self.checksum.plus(data)
        return self.file.write(data)


def verify_checkpoint(path: Path) -> None:
    """Compare a checkpoint with its checksum.

    Raises:
        UnusableCheckpoint: it was changed since it was written.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END) - CHECKSUM_LENGTH
        file.seek(max(size, 0))
        line = file.read()
        file.seek(0)
        checksum = Checksum()
        while checksum.size < size and (data := file.read(min(CHUNK_BYTES, size - checksum.size))):
            checksum = checksum.plus(data)
    if line != CHECKSUM_LINE.format(*astuple(checksum)).encode():
        raise UnusableCheckpoint("it was changed or cut short after it was written")


def network_payload(network: nn.Module, slots: dict[str, list[Tensor]]) -> dict[str, Any]:
    """Return one network's weights, buffers and optimizer slots, on the CPU, each with a storage of its own."""
    return {
        "weights": {name: compact_copy(value) for name, value in network.state_dict().items()},
        "slots": {slot: [compact_copy(value) for value in values] for slot, values in slots.items()},
    }


def compact_copy(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU that shares its storage with nothing larger than itself."""
    tensor = tensor.detach().cpu()
    return tensor if tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() else tensor.clone()


@dataclass
class Checkpoint:
    """What was read back from a checkpoint.

    Attributes:
        state: the loop's state without its slots.
        stopped: networks that ended before the others, by position.
        members: what each network keeps beside tensors.
        networks: of each network `weights`, its state_dict, and `slots` of the optimizer.
    """

    state: dict[str, Any]
    stopped: dict[int, Stopped]
    members: list[dict[str, Any]]
    networks: list[dict[str, Any]]

    def state_for(self, ensemble: Ensemble) -> State:
        """Return the state of the loop for an ensemble of these networks, however it is divided into parts."""
        slots: dict[int, dict[str, list[Tensor]]] = {}
        for member, network in enumerate(ensemble.networks):
            if member not in self.stopped:
                device = next(network.parameters()).device
                saved = self.networks[member]["slots"]
                slots[member] = {slot: [t.to(device) for t in tensors] for slot, tensors in saved.items()}
        return State(**self.state, stopped=dict(self.stopped), slots=slots)


def load_checkpoint(path: Path, configs: Sequence[Config]) -> Checkpoint:
    """Read a checkpoint of just these runs; tensors and plain values only, no code.

    Raises:
        UnusableCheckpoint: the file is damaged, of another version, or of other runs.
    """
    try:
        verify_checkpoint(path)
        payload = torch.load(path, map_location="cpu", weights_only=True)
        if payload["format"] != CHECKPOINT_FORMAT:
            raise UnusableCheckpoint(f"it has format {payload['format']}, this version writes {CHECKPOINT_FORMAT}")
        if payload["runs"] != [run_identity(config) for config in configs]:
            raise UnusableCheckpoint("it belongs to other runs, or they are recorded otherwise now")
        stops = [Stopped(*values) for values in payload["stopped"]]
        return Checkpoint(payload["state"], {s.member: s for s in stops}, payload["members"], payload["networks"])
    except UnusableCheckpoint:
        raise
    except Exception as error:
        # A torn file fails anywhere between unzipping and unpickling: whatever it raises, it is no checkpoint.
        raise UnusableCheckpoint(
            f"it cannot be read ({(str(error).splitlines() or [type(error).__name__])[0]})"
        ) from error
