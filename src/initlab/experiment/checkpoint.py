"""A whole computation on disk: weights, optimizer, where the loop stands, and the checksum of every file.

A checkpoint is an archive of torch's and a last line with the checksum of all its bytes: `torch.load` compares none,
and a zip's own protect neither its headers nor its directory. The checkpoint before is kept beside the newest.
"""

import io
import os
import zlib
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
from initlab.system.files import fsync_path, make_directory, os_errors_as_user_errors
from initlab.training import State, Stopped

CHECKPOINT_FORMAT = 4
CHECKSUM_LINE = "\ninitlab checkpoint of {:020d} bytes with CRC-32 {:08x}\n"
CHECKSUM_LENGTH = len(CHECKSUM_LINE.format(0, 0))
CHUNK_BYTES = 2**20
RECORDING_KEYS = (
    "log",
    "train",
)  # not all of it is in a result's hash, but the files of one run must not mix two of them


class UnusableCheckpoint(ValueError):
    """A checkpoint that cannot be gone on from; the message says why."""


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
    """Remove all checkpoints: nothing is left to go on from."""
    for each in (path, previous_checkpoint(path)):
        each.unlink(missing_ok=True)


def save_checkpoint(
    path: Path, ensemble: Ensemble, state: State, configs: Sequence[Config], members: list[dict]
) -> None:
    """Write a checkpoint, durably: beside first, then renamed; the last one becomes the one before.

    Arguments: `members` are what each member keeps of its own, in plain values.

    Raises UserError when the disk is full or the directory cannot be written; the last checkpoint is left as it was.
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
    beside = path.with_name(f".{path.name}.tmp")
    with os_errors_as_user_errors(path.parent):
        try:
            make_directory(path.parent)
            with open(beside, "wb") as file:
                counted = ChecksumWriter(file)
                torch.save(payload, cast(IO[bytes], counted))
                file.write(CHECKSUM_LINE.format(counted.size, counted.crc32).encode())
            fsync_path(beside)
            if path.exists():
                os.replace(path, previous_checkpoint(path))
            os.replace(beside, path)
            fsync_path(path.parent)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                beside.unlink()
            # torch reports a disk that fills up as an error of its own archive.
            cause = error if isinstance(error, OSError) else error.__context__
            raise cause if isinstance(cause, OSError) else error from None


class ChecksumWriter(io.BufferedIOBase):
    """A file to write into that counts its bytes and computes their CRC-32."""

    def __init__(self, file: IO[bytes]):
        self.file, self.size, self.crc32 = file, 0, 0

    def write(self, data: Any) -> int:
        """Write, and count."""
        written = self.file.write(data)
        self.size, self.crc32 = self.size + written, zlib.crc32(data, self.crc32)
        return written


def verify_checkpoint(path: Path) -> None:
    """Raise Unusable unless a checkpoint still holds what was written into it."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END) - CHECKSUM_LENGTH
        file.seek(max(size, 0))
        seal = file.read()
        file.seek(0)
        crc32, left = 0, size
        while left > 0 and (data := file.read(min(CHUNK_BYTES, left))):
            crc32, left = zlib.crc32(data, crc32), left - len(data)
    if seal != CHECKSUM_LINE.format(size, crc32).encode():
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
    """What was read back: the loop's state without its slots, every member's own in plain values, and its tensors."""

    state: dict[str, Any]
    stopped: dict[int, Stopped]
    members: list[dict[str, Any]]
    networks: list[dict[str, Any]]

    def fill_(self, module: nn.Module, member: int) -> nn.Module:
        """Load one member's weights and buffers into a module and return it."""
        module.load_state_dict(self.networks[member]["weights"])
        return module

    def state_for(self, ensemble: Ensemble) -> State:
        """Return the state of the loop for an ensemble of these members, however it is divided into parts."""
        slots: dict[int, dict[str, list[Tensor]]] = {}
        for member, network in enumerate(ensemble.networks):
            device = next(network.parameters()).device
            if member not in self.stopped:
                held = self.networks[member]["slots"]
                slots[member] = {slot: [t.to(device) for t in tensors] for slot, tensors in held.items()}
        return State(**self.state, stopped=dict(self.stopped), slots=slots)


def load_checkpoint(path: Path, configs: Sequence[Config]) -> Checkpoint:
    """Read a checkpoint of just these runs; tensors and plain values only, no code.

    Raises Unusable when the file is damaged, of another version, or of other runs.
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
