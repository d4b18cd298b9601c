"""The `ecgchat` command as tests call it."""

import sys

from ecgchat_lib import cli


def run_command(capsys, *arguments):
    """Run the command in this process; return exit code, lines of standard output, lines of standard error."""
    old = sys.argv
    sys.argv = ["ecgchat", *map(str, arguments)]
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = old
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()
