"""What a plan takes: a discrete-event simulation of tasks, links and memory."""

from autopar.simulate.events import Route, simulate_events
from autopar.simulate.measured import mean_task_s, replay
from autopar.simulate.perfetto import Measured
from autopar.simulate.planned import simulate_messages, simulate_plan
from autopar.simulate.simulating import simulate
from autopar.simulate.simulation import Simulation
from autopar.simulate.spans import ReadSpan, load_spans
from autopar.simulate.timeline import Event, Message, Timeline, simulate_schedule
from autopar.simulate.uses import Bill, LinkUse, Update, WorkerUse

__all__ = [
    "Bill",
    "Event",
    "LinkUse",
    "Measured",
    "Message",
    "ReadSpan",
    "Route",
    "Simulation",
    "Timeline",
    "Update",
    "WorkerUse",
    "load_spans",
    "mean_task_s",
    "replay",
    "simulate",
    "simulate_events",
    "simulate_messages",
    "simulate_plan",
    "simulate_schedule",
]
