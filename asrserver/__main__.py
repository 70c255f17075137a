"""`python -m asrserver` is the command `asrserver`."""

from asrserver.cli.main import main

if __name__ == "__main__":
    main(prog_name="asrserver")
