"""``python -m autopar`` is ``autopar``."""

from autopar.cli import main

main()
