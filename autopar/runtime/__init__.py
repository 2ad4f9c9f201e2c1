"""Runs a step that is cut into stages."""

from autopar.runtime.pipeline import Buffer, Feed, Fetch, Keep, Pipeline, Program, Stage, Transfer

__all__ = ["Buffer", "Feed", "Fetch", "Keep", "Pipeline", "Program", "Stage", "Transfer"]
