"""Runs a step that is cut into stages."""
