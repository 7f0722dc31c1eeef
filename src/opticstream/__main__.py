"""`python -m opticstream` is the `opticstream` command."""

from opticstream.cli import main

if __name__ == "__main__":
    main()
