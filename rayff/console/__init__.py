"""Live views of runs and searches in a terminal."""
