"""Local learning: trains AugLocal and its rivals, and writes checkpoints."""
