"""A mixture-of-experts Transformer, written for one device, trained on eight: planned, shown, run, checked.

    make demo      (or: python examples/demo.py)

The devices are eight virtual CPU devices of this process. The text is the source of Python's own standard
library, read byte by byte. Ends with an error if the loss did not fall or the compiled program differs from the
plan.
"""

import statistics
import sys
import time

import jax

import autopar
from autopar.models import get
from autopar.models.data.text import load_text
from autopar.report import print_audit

STEPS, BATCH, SEQUENCE = 300, 32, 64

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


def main() -> int:
    model = get("moe", batch_size=BATCH, sequence=SEQUENCE, group=64, learning_rate=3e-3)
    text = load_text()
    state = model.init(jax.random.key(0))
    print(f"{model.name}: {model.parameter_count():,} parameters, {model.summary}")
    print(f"text: {len(text.train):,} bytes of the standard library; every {BATCH} x {SEQUENCE} of them a step\n")

    print("planning: one integer program for each mesh shape")
    train_step = autopar.parallelize(
        model.step,
        cluster="cpu:8",
        options=autopar.Options(max_axes=2, time_limit_s=60),
        donate_argnums=0,
        progress=lambda line: print(f"  {line}", flush=True),
    )
    state, metrics = train_step(state, text.batch(0, BATCH, SEQUENCE))  # plans and compiles at the first call
    print()
    train_step.plan.show()

    print(f"\ntraining: {STEPS} steps")
    losses = [float(metrics["loss"])]
    begin = time.perf_counter()
    for i in range(1, STEPS):
        state, metrics = train_step(state, text.batch(i, BATCH, SEQUENCE))
        losses.append(float(metrics["loss"]))
        if (i + 1) % (STEPS // 10) == 0:
            rate = i * BATCH * SEQUENCE / (time.perf_counter() - begin)
            bar = "#" * (20 * (i + 1) // STEPS)
            print(f"  [{bar:<20}] step {i + 1:>3}  loss {losses[-1]:.3f}  {rate:,.0f} tokens/s", flush=True)

    first, last = losses[0], statistics.mean(losses[-10:])
    unseen = text.batch(0, BATCH, SEQUENCE, split="eval")
    held_out = jax.jit(model.step)(jax.device_get(state), unseen)[1]["loss"]
    print(f"loss: {first:.3f} at first, {last:.3f} over the last ten steps, {held_out:.3f} on files never trained on\n")
    audit = train_step.executable.audit
    print_audit(audit)

    if not last < 0.7 * first:
        print(f"\nFAILED: the loss did not fall ({first:.3f} to {last:.3f})", file=sys.stderr)
    if not audit.agrees:
        print("\nFAILED: the compiled program is not the planned one", file=sys.stderr)
    return 0 if last < 0.7 * first and audit.agrees else 1


if __name__ == "__main__":
    sys.exit(main())
