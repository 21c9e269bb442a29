"""Checks of the machine, its software and the cluster."""
