"""Backpropagation of the same networks, for comparison."""
