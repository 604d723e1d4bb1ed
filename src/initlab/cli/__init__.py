"""The command line: one file for each verb; `cli/hydra` is Hydra's launcher and sweeper."""
