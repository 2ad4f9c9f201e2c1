"""A plan is data: what it says about GPT-1.3B on sixteen H100, made on a laptop without any.

python examples/02_read_a_plan.py
"""

import autopar
from autopar.models import get
from autopar.report import sentence


def main():
    gpt = get("gpt", preset="1.3b", batch_size=64)
    options = autopar.Options(mesh=(2, 8))
    plan = autopar.plan(gpt.step, *gpt.abstract(), cluster="h100:2x8", options=options, donate_argnums=0)

    print(sentence(plan))
    print(f"step    {plan.step_s * 1e3:.0f} ms, of which {plan.communication_s * 1e3:.0f} ms communication")
    print(f"memory  {plan.peak_bytes / 2**30:.1f} GiB of each device")
    print(f"proof   within {plan.gap:.2%} of the bound of the integer program")

    print("\nthe collectives that take longest")
    for c in sorted(plan.collectives, key=lambda c: -c.seconds)[:5]:
        print(f"  {c.seconds * 1e3:4.1f} ms  {c.count:3} x {c.kind} over {','.join(c.axes)}, {c.phase}, for {c.where}")

    print("\nhow matrices of the first layer lie: per mesh axis the dim that it splits, or -1")
    for a in plan.arguments:
        if a.kind == "parameter" and "['layers'][0]" in a.name and len(a.shape) > 1:
            print(f"  {a.name:41} {a.shape!s:15} {a.layout}")

    plan.save("gpt-1.3b.json")
    print(f"\nsaved; loads as the same plan: {autopar.load_plan('gpt-1.3b.json').step_s == plan.step_s}")


if __name__ == "__main__":
    main()
