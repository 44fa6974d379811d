"""The market of DAEDALUS as an OpenEnv environment: its client, and its server."""

from .client import DaedalusAction, DaedalusEnv, DaedalusObservation, DaedalusState

__all__ = ["DaedalusAction", "DaedalusEnv", "DaedalusObservation", "DaedalusState"]


def server() -> None:
    """Serve the market: `server --port 7860`; the options are those of `daedalus serve`."""
    import sys

    from daedalus.cli import main

    sys.argv[1:1] = ["serve"]
    main()
