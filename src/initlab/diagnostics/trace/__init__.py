"""How the calls and outputs of a module's layers are recorded."""
