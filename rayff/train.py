"""The command that trains: python -m rayff.train."""
