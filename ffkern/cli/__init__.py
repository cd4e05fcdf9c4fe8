"""Entry point of the command line; the commands, which need typer and rich, are imported inside."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``ffkern ARGV``. Exit code: 0 done, 1 a check failed, 2 not understood or impossible."""
    try:
        from ._run import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(
            "ffkern's command line needs typer and rich: run `pip install ffkern[cli]`",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:  # while torch is still being imported
        return 130
    except ImportError as error:  # the compiled library; the text says what to do
        print(f"ffkern: {error}", file=sys.stderr)
        return 2
    return run(sys.argv[1:] if argv is None else list(argv))
