"""``python -m prouter``: the ``prouter`` command."""

from prouter.cli import main

if __name__ == "__main__":
    main()
