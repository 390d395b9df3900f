"""Backbones: ordered lists of named layers and a head, one family a file."""
