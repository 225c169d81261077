"""The console script ``chatfn``, also ``python -m chatfn``: the command, or what to install for it."""

import sys
from importlib.util import find_spec
from typing import NoReturn


def main() -> NoReturn:
    if find_spec("click") is None:
        sys.exit("chatfn: the command needs the package 'click': pip install 'chatfn[cli]'")
    from chatfn.cli import main as command

    command()


if __name__ == "__main__":
    main()
