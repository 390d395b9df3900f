"""Checkpoints of other people: read without running code, and recognised."""
