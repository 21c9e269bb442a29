"""A run's options: the user's and the resolved ones; the standard library only."""
