"""The client of the environment, and what goes over the wire."""

from daedalus.serving.openenv import DaedalusAction, DaedalusEnvClient as DaedalusEnv, DaedalusObservation, DaedalusState

__all__ = ["DaedalusAction", "DaedalusEnv", "DaedalusObservation", "DaedalusState"]
