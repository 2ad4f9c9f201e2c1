"""What a training step takes on a cluster, from a model's sizes and a parallel configuration. No jax.

sizes, or a chain of blocks -> units -> kernels and collectives -> seconds -> stages in time -> Prediction
"""

from autopar.prediction.chain import Block, Chain, Op
from autopar.prediction.efficiency import FITTED, Fitted
from autopar.prediction.memory import Held
from autopar.prediction.parallel import Parallel
from autopar.prediction.result import Prediction
from autopar.prediction.sizes import Sizes
from autopar.prediction.step import predict_memory, predict_step

__all__ = [
    "FITTED",
    "Block",
    "Chain",
    "Fitted",
    "Held",
    "Op",
    "Parallel",
    "Prediction",
    "Sizes",
    "predict_memory",
    "predict_step",
]
