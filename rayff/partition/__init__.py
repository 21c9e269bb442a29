"""Where a chain is cut: costs to cuts, and the timing that measures the costs."""
