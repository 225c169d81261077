"""``python -m chatfn.cli``."""

from chatfn.cli import main

main()
