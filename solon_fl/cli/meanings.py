"""What the settings that several commands share mean, in one line each."""

from typing import Final

__all__ = ["CONFIG", "SCENARIO", "without"]

CONFIG: Final = {
    "num_nodes": "P: nodes in the run, a multiple of the group size.",
    "byzantine": "s: nodes of each group that may lie.",
    "compression": "k: a node sends 1/k of the gradient.",
    "stragglers": "e: nodes of each group that may stay silent.",
    "group_size": "r: nodes of a group; 0 takes the fewest that the other settings allow: 2s + e + k without digests "
    "and a referee.",
    "code": "exact if all nodes compute the same bits (no bit is wrong then), else fourier.",
    "rtol": "Float noise tolerated between honest nodes.",
    "seed": "Fixes weights, batches and liars: the same seed gives the same result.",
    "batches_per_group": "Batches that a node computes in a round; 0 takes r.",
    "mode": "What is coded: the gradient, or the change of the model after local steps.",
    "grouping": "Who forms the groups: the server, or each silo is one.",
    "on_group_failure": "What to do if a group fails: leave it out, skip the round, or stop the run.",
    "strangers": "Nodes that connect after the start: may fill in, or are refused.",
    "downlink": "Whether messages hold the whole model, or only what changed, rounded: a twelfth of the bytes.",
    "regroup": "When nodes are put into new groups at random. With round, s nodes in all lie by default.",
    "quarantine_after": "Rounds with an offence after which a node gets no more tasks.",
    "verification": "How lies are told from the truth. With digest, r may be as small as max(2s + 1, s + k) + e if all "
    "nodes compute the same bits.",
    "redundancy": "Who of a group computes. With reactive, only as many as suffice if they agree, and the others where "
    "they do not.",
    "referee": "Let a referee, whom the server trusts, compute a gradient that the shares of a group do not settle: "
    "r may be s + e + k, with digest max(s + 1, k) + e.",
    "audit": "Probability with which the referee looks at a group although all is well.",
    "group_weights": "Weight of each group in the average, as in 1,2; none weighs them equally.",
}
"""Every field of `SolonConfig`."""

SCENARIO: Final = {
    "strategy": "Who aggregates.",
    "attack": "What the liars do; none is no attack.",
    "attack_from": "Round in which the liars begin to lie.",
    "num_liars": "Liars among all nodes; none takes as many as Solon bears in every group.",
    "dataset": "Data set: a name, a folder of class folders, or module:name of your own.",
    "model": "Network to train: a name, or module:name of your own.",
    "dirichlet": "alpha: each node has its own examples, the less alike the smaller alpha; none shares all with all.",
    "data_dir": "Folder (or file) of a data set that does not come with the package.",
    "image_size": "Side in pixels to which images of your own are scaled and cropped; none takes them as they are.",
    "rounds": "Rounds: steps of the server's optimizer.",
    "batch_size": "Examples in one batch; every round has P batches.",
    "learning_rate": "Of the server's SGD.",
    "momentum": "Of SGD; see momentum_at.",
    "momentum_at": "Where it is if nodes send plain gradients: server, nodes, or best for the strategy.",
    "sign_learning_rate": "Of the server's SGD with strategy=signum.",
    "local_learning_rate": "Of the local steps, with mode=update.",
    "engine": "Where nodes run; ray needs solon-fl[ray].",
    "compute_once": "Compute the gradient of a group's honest nodes once; false takes r times as long, with the same "
    "result.",
}
"""Every field of `Scenario` but the config."""


def without(meanings: dict[str, str], *names: str) -> dict[str, str]:
    """Return the meanings but for those of some settings, which a command does not take."""
    return {name: meaning for name, meaning in meanings.items() if name not in names}
