"""Arrays and models in, results out: how the layers of trained networks differ."""
