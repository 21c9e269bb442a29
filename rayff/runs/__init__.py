"""What a run leaves: run directory, checkpoints, metrics, timeline, the copy in a storage."""
