"""A cluster of your own, from a file: two hosts of four devices, joined by a network that they share.

python examples/05_own_cluster.py
"""

from pathlib import Path

import autopar
from autopar.models import get
from autopar.report import sentence

FILE = """
name = "lab"

[device]
preset = "a100-80gb"
memory = "40 GiB"

[[level]]
name = "device"
size = 4

[[level]]
name = "host"
size = 2
latency = "30 us"
shared_bandwidth = "{network}"
"""


def main():
    gpt = get("gpt", preset="350m", layers=2, batch_size=64)
    for network in ("10 Gbit/s", "400 Gbit/s"):
        Path("lab.toml").write_text(FILE.format(network=network))
        cluster = autopar.Cluster.load("lab.toml")
        options = autopar.Options(mesh=(2, 4), mip_gap=0.02)
        plan = autopar.plan(gpt.step, *gpt.abstract(), cluster=cluster, options=options, donate_argnums=0)
        print(f"{network:10} between hosts: {plan.step_s * 1e3:.0f} ms a step")
        print(f"  {sentence(plan)}")


if __name__ == "__main__":
    main()
