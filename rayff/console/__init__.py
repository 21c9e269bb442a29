"""Live views of runs and searches on a terminal."""
