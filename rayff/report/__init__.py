"""HTML reports of runs and searches."""
