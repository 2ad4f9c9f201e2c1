"""Random schedules that are legal by construction, and an oracle of what waits for what."""

import itertools

import networkx as nx
from hypothesis import strategies as st

from autopar.schedule import Kind, Schedule, Task

KINDS = [(Kind.FORWARD,), (Kind.FORWARD, Kind.BACKWARD), (Kind.FORWARD, Kind.BACKWARD, Kind.WEIGHT)]


def waits(schedule: Schedule) -> nx.DiGraph:
    """An edge from each task to those that wait for it, by need or because they come next in a worker's list."""
    tasks = [task for tasks in schedule.workers for task in tasks]
    graph = nx.DiGraph()
    graph.add_nodes_from(tasks)
    for kind, stage, m in ((t.kind, t.stage, t.microbatch) for t in tasks):
        before = {
            Kind.FORWARD: [(Kind.FORWARD, stage - 1)],
            Kind.BACKWARD: [(Kind.FORWARD, stage), (Kind.BACKWARD, stage + 1)],
            Kind.WEIGHT: [(Kind.BACKWARD, stage)],
        }[kind]
        for other, at in before:
            if 0 <= at < schedule.stages:
                graph.add_edge(Task(other, at, m), Task(kind, stage, m))
    graph.add_edges_from(pair for tasks in schedule.workers for pair in itertools.pairwise(tasks))
    return graph


@st.composite
def legal(draw) -> Schedule:
    """Stages anywhere, tasks in the order in which one worker could run them all."""
    stages, microbatches = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    kinds = draw(st.sampled_from(KINDS))
    home = draw(st.lists(st.integers(0, stages - 1), min_size=stages, max_size=stages))
    everything = tuple(Task(kind, s, m) for kind in kinds for s in range(stages) for m in range(microbatches))
    graph = waits(Schedule("one by one", stages, microbatches, tuple((task,) for task in everything)))
    rank = dict(zip(everything, draw(st.permutations(range(len(everything)))), strict=True))
    order = list(nx.lexicographical_topological_sort(graph, key=rank.__getitem__))
    lists = tuple(tuple(task for task in order if home[task.stage] == worker) for worker in range(stages))
    return Schedule("drawn", stages, microbatches, lists)
