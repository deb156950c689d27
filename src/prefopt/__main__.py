"""`python -m prefopt` is the `prefopt` command."""

from prefopt.cli import main

if __name__ == "__main__":
    main()
