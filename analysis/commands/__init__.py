"""The commands of `python -m analysis`, one group a file."""
