"""Training on several processes: a rank owns a run of blocks, or a share of each batch, or both."""
