"""``python -m narrowcast``: the same as the command ``narrowcast``."""

from narrowcast.cli import main

if __name__ == "__main__":
    main()
