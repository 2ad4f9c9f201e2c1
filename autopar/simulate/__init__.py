"""What a schedule takes: a discrete-event simulation."""

from autopar.simulate.planned import simulate_plan
from autopar.simulate.timeline import Event, Timeline, simulate_schedule

__all__ = ["Event", "Timeline", "simulate_plan", "simulate_schedule"]
