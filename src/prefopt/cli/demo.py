"""`prefopt demo`: the main job on a generated world."""

from __future__ import annotations

from typing import Annotated

from prefopt.cli.options import described, seeded
from prefopt.cli.outcome import Outcome, interval, percent


def demo(
    *,
    out: Annotated[
        str, described("Folder for everything it makes.", metavar="FOLDER")
    ] = "runs/demo",
    seed: Annotated[
        int, seeded("Seed of the world and of all else; the same seed, the same result.")
    ] = 0,
    quick: Annotated[
        bool, described("A much smaller run that shows the way and proves nothing.")
    ] = False,
) -> Outcome:
    """Train and measure on a small generated world, end to end.

    Short reviews from a seeded grammar, with a known reward: a small model learns to
    write them (SFT), its own pairs are compared by the reward with noise, DPO learns from the
    comparisons, and the result is measured on prompts it never saw. It takes a minute
    or two on two cores and needs no network.

    With `--json`: `win_rate`, `win_rate_interval`, `reward_before`, `reward_after`, `kl`,
    `seconds`, `report`.
    """
    from prefopt.demo import run_demo

    result = run_demo(out, seed=seed, quick=quick)
    return Outcome(
        result,
        [
            f"Its answers win {percent(result['win_rate'])} of the time against the model before "
            f"({interval(result['win_rate_interval'])}), on prompts it never saw.",
            f"The true reward went from {result['reward_before']:.2f} to "
            f"{result['reward_after']:.2f}.",
            f"It moved {result['kl']:.1f} nats away from where it started, in "
            f"{result['seconds']:.0f} seconds.",
            f"Report: {result['report']}",
        ],
    )
