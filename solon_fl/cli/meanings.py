"""What each setting means, in one line, for the commands that share it."""

from typing import Final

__all__ = ["CONFIG", "SCENARIO", "without"]

CONFIG: Final = {
    "num_nodes": "P: number of nodes, a multiple of the group size.",
    "byzantine": "s: liars tolerated in each group.",
    "compression": "k: each node sends 1/k of the gradient's length.",
    "stragglers": "e: missing replies tolerated in each group.",
    "group_size": "r: nodes in a group. 0 takes the fewest that the other settings allow: 2s + e + k without digests "
    "and a referee.",
    "code": "Use exact if all nodes compute the same bits: liars then change no bit of the model. Else use fourier.",
    "rtol": "Relative float noise tolerated between honest nodes.",
    "seed": "Seed for weights, batches and liars. The same seed gives the same result.",
    "batches_per_group": "Batches that each node computes in a round. 0 takes r.",
    "mode": "What nodes encode: the gradient, or the change of the model after local steps.",
    "grouping": "Whether the server forms the groups, or each silo is a group.",
    "on_group_failure": "What to do when a group cannot be decoded: leave it out, skip the round, or stop the run.",
    "strangers": "Nodes that connect after the start: they may fill in for others, or they are refused.",
    "downlink": "Whether messages carry the whole model, or only its change, rounded, in about a twelfth of the bytes.",
    "regroup": "When nodes are assigned to new random groups. With round, s nodes in all lie by default.",
    "quarantine_after": "Rounds with an offence after which a node gets no more tasks.",
    "verification": "How lies are detected. With digest, r may be as small as max(2s + 1, s + k) + e if all nodes "
    "compute the same bits.",
    "redundancy": "Which nodes of a group compute. With reactive, only as many as suffice when they agree, and the "
    "others when they do not.",
    "referee": "Let a referee, which the server trusts, compute a gradient that the shares of a group do not settle. "
    "r may then be s + e + k, or max(s + 1, k) + e with digest.",
    "audit": "Probability that the referee checks a group although nothing seems wrong.",
    "group_weights": "Weight of each group in the average, such as 1,2. none weighs all groups equally.",
}
"""Every field of `SolonConfig`."""

SCENARIO: Final = {
    "strategy": "Aggregation strategy of the server.",
    "attack": "Attack of the liars; none is no attack.",
    "attack_from": "First round in which the liars lie.",
    "num_liars": "Liars among all nodes. none takes as many as Solon tolerates: s in every group.",
    "dataset": "Data set: a name, a folder with a subfolder for each class, or module:name of your own.",
    "model": "Network to train: a name, or module:name of your own.",
    "dirichlet": "alpha: each node has its own examples, and a smaller alpha makes the nodes less alike. none shares "
    "all examples.",
    "data_dir": "Folder (or file) of a data set that does not come with the package.",
    "image_size": "Side in pixels to which your own images are scaled and cropped. none keeps their size.",
    "rounds": "Number of rounds: steps of the server's optimizer.",
    "batch_size": "Examples in a batch. By default a round has P batches.",
    "learning_rate": "Learning rate of the server's SGD.",
    "momentum": "Momentum of SGD; see momentum_at.",
    "momentum_at": "Where the momentum is if nodes send plain gradients: at the server, at the nodes, or where it is "
    "best for the strategy.",
    "sign_learning_rate": "Learning rate of the server's SGD with strategy=signum.",
    "local_learning_rate": "Learning rate of the local steps with mode=update.",
    "engine": "Where nodes run. ray needs solon-fl[ray].",
    "compute_once": "Compute the gradient of a group's honest nodes once. false takes r times as long and gives the "
    "same result.",
}
"""Every field of `Scenario` except the config."""


def without(meanings: dict[str, str], *names: str) -> dict[str, str]:
    """Return the meanings without those of the settings that a command does not take."""
    return {name: meaning for name, meaning in meanings.items() if name not in names}
