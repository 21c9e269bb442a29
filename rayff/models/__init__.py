"""Architectures as plain data: tables of layers, nothing of torch."""
