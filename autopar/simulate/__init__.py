"""What a schedule takes: a discrete-event simulation."""

from autopar.simulate.timeline import Event, Timeline, simulate_schedule

__all__ = ["Event", "Timeline", "simulate_schedule"]
