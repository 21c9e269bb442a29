"""Searches with Ray Tune: spaces, trials, schedulers, results."""
