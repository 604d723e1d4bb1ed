"""Reproduce the field: experiments with criteria fixed beforehand, run on fresh seeds, end in verdicts."""
