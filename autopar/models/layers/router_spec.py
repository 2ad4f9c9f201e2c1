"""What a router is told: its name, the experts it chooses from, and how many tokens each of them takes."""

from dataclasses import dataclass

from autopar.models.recipe import unknown

# Experts that each token is sent to in the router's paper; None where it may be any number, here two if not said.
TOP_K: dict[str, int | None] = {
    "top2": 2,
    "switch": 1,
    "expert-choice": None,
    "st-moe": 2,
    "task": 2,
    "image": 1,
    "sigmoid": None,
}


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """Sizes of a router.

    Attributes:
        router: a key of `routers.ROUTERS`.
        experts: how many there are.
        top_k: how many of them a token is sent to (on average with "expert-choice"); None means as in the paper.
        group: tokens that are routed together and compete for slots.
        capacity_factor: slots of the experts, relative to the choices of a group.
        aux_weight: weight of the load-balancing loss, where there is one.
        z_weight: weight of the router z-loss, where there is one.
        bias_speed: how much the balancing bias of "sigmoid" moves at a step.
        scale: what the weights of "sigmoid" sum to.
        expert_groups: parts that the experts are divided into, of which "sigmoid" sends a token to `chosen_groups`.
        chosen_groups: how many.
    """

    router: str = "top2"
    experts: int
    top_k: int | None = None
    group: int
    capacity_factor: float = 1.0
    aux_weight: float = 0.01
    z_weight: float = 0.001
    bias_speed: float = 0.001
    scale: float = 1.0
    expert_groups: int = 1
    chosen_groups: int = 1

    def __post_init__(self) -> None:
        if self.router not in TOP_K:
            raise ValueError(unknown("router", self.router, TOP_K))
        if (fixed := TOP_K[self.router]) and self.top_k not in (None, fixed):
            raise ValueError(
                f"router={self.router!r} sends a token to {fixed} experts, top_k={self.top_k} was asked for"
            )
        if not 1 <= self.choices <= self.experts:
            raise ValueError(
                f"each token was to be sent to {self.choices} of {self.experts} experts; give more experts or a "
                "smaller top_k"
            )
        if self.router == "sigmoid":
            self._check_sigmoid()

    def _check_sigmoid(self) -> None:
        if self.choices < 2:
            raise ValueError(
                "router='sigmoid' divides the chosen affinities by their sum: with top_k=1 the weight is always one "
                "and the router learns nothing; pass top_k=2 or more"
            )
        if self.experts % self.expert_groups or self.choices % self.chosen_groups:
            raise ValueError(
                f"experts ({self.experts}) must be a multiple of expert_groups ({self.expert_groups}), and top_k "
                f"({self.choices}) of chosen_groups ({self.chosen_groups})"
            )
        if not self.choices <= self.chosen_groups * (self.experts // self.expert_groups) <= self.experts:
            raise ValueError(
                f"{self.choices} experts cannot be chosen from {self.chosen_groups} of {self.expert_groups} groups of "
                f"{self.experts // self.expert_groups}; change chosen_groups or top_k"
            )

    @property
    def choices(self) -> int:
        """Experts that a token is sent to."""
        return self.top_k or TOP_K[self.router] or 2

    @property
    def by_example(self) -> bool:
        """Whether whole examples are routed, rather than tokens."""
        return self.router in ("task", "image")

    @property
    def has_bias(self) -> bool:
        """Whether the load is balanced by a bias, which is state, rather than by a loss."""
        return self.router == "sigmoid"

    def capacity(self, items: int) -> int:
        """Slots that each expert has for a group of so many tokens (or examples): its even share, scaled."""
        share = int(self.choices * items * self.capacity_factor / self.experts)
        return min(max(1, share), items)

    def check_groups(self, batch_size: int, sequence: int) -> None:
        """Refuses a batch that cannot be cut into groups.

        Args:
            batch_size: examples in a batch.
            sequence: tokens in each.

        Raises:
            ValueError: with the sizes, and what to change.
        """
        if batch_size * sequence % self.group:
            raise ValueError(
                f"batch_size x sequence ({batch_size} x {sequence} tokens) must be a multiple of the "
                f"routing group ({self.group}); change one of the three"
            )
        if self.by_example and self.group % sequence:
            raise ValueError(
                f"router={self.router!r} routes whole examples: the routing group ({self.group} tokens) must be a "
                f"multiple of the sequence ({sequence})"
            )
