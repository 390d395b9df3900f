"""Learning rules: how a backbone is cut into blocks and what each block learns from, one a file."""
