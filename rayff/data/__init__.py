"""Tasks, where their images come from, and the order in which they are seen."""
