"""The liars of the tests of `SolonStrategy`."""

from solon_fl.simulations.attacks import RandomGaussian
from solon_fl.simulations.attacks.mods import attack_mod

LIARS = {1, 4, 8, 13}  # numbers: two of each group of seven
LIAR_IDS = tuple(sorted(number + 1 for number in LIARS))
BROKEN_GROUP = attack_mod(RandomGaussian(), {0, 1, 2})  # three of the first group's seven, where two are allowed
