"""Stages as Ray actors: placement, transport, planning, failures."""
