"""Hydra discovers initlab's launcher and sweeper here."""
