"""A bidder of a user's own: it bids just above the price that it was last shown. Run alone: python sniper.py"""

import numpy as np

import daedalus as dd


def sniper(view):
    """Bid just above the last mean price that the rules revealed; before there is one, the middle of the range of values."""
    shown = view.price[np.isfinite(view.price)]
    if len(shown):
        view.memory[0] = shown.mean()
    remembered = view.memory[0] or (view.value_low + view.value_high) / 2
    return 1.01 * remembered, 1e-6  # the slope settles ties


dd.register_bidder("sniper", sniper, memory=1)


def main():
    dd.check_bidder("sniper")
    keys, rules = [(0, episode) for episode in range(20)], {}
    rules["shown"], rules["hidden"] = (dd.DEFAULT_MECHANISM.replace(reveal_clearing_price=shown) for shown in (True, False))
    for people in dd.Population(truthful=8), dd.Population(truthful=6, sniper=2):
        for what, mechanism in rules.items():
            out = dd.simulate(mechanism, people, keys)
            print(f"{people}, prices {what}: welfare {out.welfare.mean():.3f}, revenue {out.revenue.mean():.3f}, R {out.reward.mean():.3f}")


if __name__ == "__main__":
    main()
