"What files of tests share: waiting for an event itself, for long enough on a busy machine; a port; a finished training."
import inspect
import json
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SMOKE_TRAINING = "train --profile smoke --seed 3 --work work --output designer --record record.json --episodes 5".split()
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Of a process that hears these signals, also where the tests run in the background or under nohup, which have them ignored.
# Only there: code between fork and exec can hang where the parent has threads.
HEARS: dict[str, Any] = {"preexec_fn": lambda: [signal.signal(number, signal.SIG_DFL) for number in ENDS]} if any(
    signal.getsignal(number) is signal.SIG_IGN for number in ENDS) else {}
UNSLOTH = json.loads((Path(__file__).parent / "unsloth.json").read_text())   # the parameters of its loader, as it has them

@contextmanager
def additions() -> Iterator[None]:
    "Formats and bidders that are registered within are gone afterwards."
    from daedalus._runtime import ADDED
    from daedalus.market.auction import FORMATS
    from daedalus.market.bidders import BIDDERS

    tables = ADDED, FORMATS, BIDDERS
    kept = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, before in zip(tables, kept):
            table.clear()
            table.update(before)


PATIENCE = 120   # seconds after which what was waited for will not come


def until(happened: Callable[[], Any], what: str = "it did not happen") -> Any:
    "What `happened` returns, as soon as it is true; AssertionError with `what` when it never is."
    deadline = time.monotonic() + PATIENCE
    while not (value := happened()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return value


@contextmanager
def held_port() -> Iterator[int]:
    "A port of this machine that nobody is given meanwhile, and on which a server can be started."
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        if not sys.platform.startswith("linux"):   # elsewhere two sockets cannot be bound to it, though one of them does not listen
            holder.close()
        yield port


def recorded_loader() -> Any:
    "A stub of Unsloth's FastLanguageModel, which refuses what its real signatures have no parameter for; `calls` keeps the rest."
    def method(name: str, answer: Any) -> Callable:
        names = UNSLOTH["FastLanguageModel"][name]
        signature = inspect.Signature([inspect.Parameter(part, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None if at else (
            inspect.Parameter.empty if name == "get_peft_model" else None)) for at, part in enumerate(names) if part[0] != "*"])

        def call(*values: Any, **options: Any) -> Any:
            for option in options:
                if option not in names:   # what the real one would hand on, unread, in its **kwargs
                    raise TypeError(f"{name} has no parameter {option}")
            loader.calls.append(dict(signature.bind(*values, **options).arguments))
            return answer

        return call

    loader: Any = type("FastLanguageModel", (), {"calls": []})
    loader.from_pretrained = staticmethod(method("from_pretrained", ("base", "tokenizer")))
    loader.get_peft_model = staticmethod(method("get_peft_model", "policy"))
    return loader
