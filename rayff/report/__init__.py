"""Pictures and pages about runs and searches."""
