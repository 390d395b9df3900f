"""Other people's checkpoint files, opened without running code of them."""
