"""The benchmarks: medians of several runs, and ratios from one run on one machine."""
