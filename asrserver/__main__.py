"""`python -m asrserver` is the command `asrserver`."""

import sys

#: What a shell says of a program that SIGINT has ended.
INTERRUPTED = 130


def start() -> None:
    """Run the command; an interrupt while its modules are imported, which takes a second, is no traceback either."""
    try:
        from asrserver.cli.main import main
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    main(prog_name="asrserver")


if __name__ == "__main__":
    start()
