"""What does this initialization do to this network? Predicted, measured at step 0, and shown by training."""

from importlib import import_module
from typing import Any

from initlab.system.startup import limit_openmp_spinning

limit_openmp_spinning()  # before torch is loaded
__version__ = "0.1.0"

# The name in `initlab` -> the module that holds it, and the name there where it is an attribute.
_PLACES = {
    "ACTIVATIONS": ("activations", "ACTIVATIONS"),
    "PROCEDURES": ("initialize.procedures", "PROCEDURES"),
    "SCHEMES": ("schemes", "SCHEMES"),
    "diagnose": ("diagnostics", "diagnose"),
    "fingerprint": ("initialize", "fingerprint"),
    "initialize_": ("initialize.procedures", "initialize_"),
    "load": ("records", "load"),
    "load_layers": ("records", "load_layers"),
    "predict": ("prediction", "predict"),
    "fans": ("inspection", None),
    "procedures": ("initialize.procedures", None),
}
_MODULES = ("activations", "audit", "data", "initialize", "models", "records", "schemes", "sweep", "testing", "theory")
__all__ = [*_PLACES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'initlab' has no attribute {name!r}")
    module, attribute = _PLACES.get(name, (name, None))
    found = import_module(f"initlab.{module}")
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
