"""``python -m caloforge`` and the ``caloforge`` command."""

import sys


def main() -> None:
    """Run the command line; user errors end with one sentence and exit code 2."""
    from .cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
