"""The commands of `python -m auglocal`, one a file."""
