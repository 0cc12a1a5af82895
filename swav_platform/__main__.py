"""`python -m swav_platform` is the command `swav`."""

from swav_platform.cli.main import entry

if __name__ == "__main__":
    entry()
