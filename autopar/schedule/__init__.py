"""The order of work in a pipeline, as data with one checker."""

from autopar.schedule.check import check_schedule
from autopar.schedule.execution import Work, executed, needs
from autopar.schedule.memory import MOST_IN_FLIGHT, Flight, flights, in_flight, in_flight_bound
from autopar.schedule.orders import gpipe, inference, interleaved, one_f_one_b, zb_h1
from autopar.schedule.pipeline import Buffer, Feed, Fetch, Keep, Pipeline, Program, Spec, Stage, Transfer
from autopar.schedule.table import CHUNKED, SCHEDULES, make_schedule
from autopar.schedule.task import Kind, Schedule, Task

__all__ = [
    "CHUNKED",
    "MOST_IN_FLIGHT",
    "SCHEDULES",
    "Buffer",
    "Feed",
    "Fetch",
    "Flight",
    "Keep",
    "Kind",
    "Pipeline",
    "Program",
    "Schedule",
    "Spec",
    "Stage",
    "Task",
    "Transfer",
    "Work",
    "check_schedule",
    "executed",
    "flights",
    "gpipe",
    "in_flight",
    "in_flight_bound",
    "inference",
    "interleaved",
    "make_schedule",
    "needs",
    "one_f_one_b",
    "zb_h1",
]
