"""``python -m moescope`` is the ``moescope`` command."""

from moescope.cli import main

main()
