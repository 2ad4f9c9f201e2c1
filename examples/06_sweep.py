"""How does it scale? One step planned on clusters of several sizes, by several strategies.

python examples/06_sweep.py
"""

import autopar
from autopar.models import get


def main():
    gpt = get("gpt", preset="350m", layers=2, batch_size=32)
    table = autopar.sweep(
        gpt.step,
        *gpt.abstract(),
        clusters=["h100:1", "h100:2", "h100:4", "h100:8"],
        strategies=["auto", "data"],
        options=autopar.Options(max_axes=1),
        units=gpt.units,
        unit=gpt.unit,
        donate_argnums=0,
    )
    for row in table.rows:
        if row.status == "planned":
            print(
                f"{row.cluster:8} {row.strategy:5} {row.step_s * 1e3:6.1f} ms  efficiency {table.efficiency(row):.0%}"
            )
    table.save(".")  # sweep.csv, sweep.json


if __name__ == "__main__":
    main()
