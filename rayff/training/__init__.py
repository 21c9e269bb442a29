"""A pipeline, the loop that drives it, and what a run leaves behind; knows nothing of Ray."""
