"""You know better, or want to know what it would cost: fix how an array lies, and compare.

python examples/07_hints.py
"""

import autopar
from autopar.models import get
from autopar.report import sentence


def main():
    gpt = get("gpt", preset="350m", layers=2, batch_size=64)

    def planned(**hints):
        options = autopar.Options(mesh=(8,), hints=hints.get("hints", {}))
        return autopar.plan(gpt.step, *gpt.abstract(), cluster="h100:8", options=options, donate_argnums=0)

    free = planned()
    print(f"free    {free.step_s * 1e3:.1f} ms: {sentence(free)}")
    whole = planned(hints={"*params*mlp*w*": "R"})  # the feed-forward weights whole on every device
    print(f"hinted  {whole.step_s * 1e3:.1f} ms: {sentence(whole)}")
    seconds, memory = whole.step_s / free.step_s - 1, whole.peak_bytes / free.peak_bytes - 1
    print(f"the hint costs {seconds:+.1%} time, {memory:+.1%} memory")


if __name__ == "__main__":
    main()
