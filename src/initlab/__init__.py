"""What does this initialization do to this network? Predicted, measured at step 0, and shown by training."""

from importlib import import_module
from typing import Any

from initlab.collector import bound_waiting

bound_waiting()  # before torch is loaded
__version__ = "0.1.0"

_HOMES = {
    # the catalogues
    "SCHEMES": "schemes",
    "PROCEDURES": "procedures",
    "ACTIVATIONS": "activations",
    # initialize
    "initialize_": "procedures",
    "fingerprint": "initialize",
    # predict and diagnose
    "predict": "prediction",
    "diagnose": "verdicts",
    # records
    "load": "records",
    "load_layers": "records",
}
_ROOMS = {"sweep", "models", "activations", "schemes", "fans", "data", "theory"}
_ROOMS |= {"initialize", "procedures", "audit", "testing", "records"}
__all__ = [*_HOMES, *sorted(_ROOMS)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"initlab.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return import_module(f"initlab.{name}")
    raise AttributeError(f"module 'initlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
