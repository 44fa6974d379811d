"""What reaches the top of the declared rewards: the best mechanism known for each stage. `python oracle.py ADDRESS` shows it."""

import json
import sys
from pathlib import Path

import yaml

from daedalus.serving.openenv import DaedalusEnvClient, best_known

HERE = Path(__file__).parent


def rewards(address: str, options: dict, stage: int) -> list[float]:
    """The rewards of the oracle in an episode of a stage."""
    with DaedalusEnvClient(address).sync() as env:
        result, earned = env.reset(**options | {"stage": stage}), []
        while not result.done:
            result = env.step(best_known(stage))
            earned.append(result.reward)
        return earned


def main(address: str = "http://127.0.0.1:7860") -> int:
    """Play every stage; the exit code is 1 where a reward misses the declared top by more than the tolerance."""
    manifest = yaml.safe_load((HERE / "openenv.yaml").read_text(encoding="utf-8"))["validation"]
    reset = json.loads((HERE / manifest["execution"]["probe_path"]).read_text(encoding="utf-8"))["reset"]
    options, least = reset["options"] | {"seed": reset["seed"]}, manifest["reward"]["range"][1] - manifest["reward"]["oracle_tolerance"]
    worst = {stage: min(rewards(address, options, stage)) for stage in range(5)}
    for stage, reward in worst.items():
        print(f"stage {stage}: the oracle's smallest reward is {reward:g}, and {least:g} is declared")
    return int(min(worst.values()) < least)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
