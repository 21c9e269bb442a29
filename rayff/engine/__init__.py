"""Stages, commands, schedule and loop: one training on any pipeline, without Ray."""
