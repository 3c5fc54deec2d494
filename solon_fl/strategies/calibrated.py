"""The result of a calibration, and the findings it is computed from."""

import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Context, Decimal

import torch
from torch import Tensor

from solon_fl.coding import RealCode
from solon_fl.coding.real.decoder import worst_relative_error
from solon_fl.coding.sections import Sections
from solon_fl.config import SolonConfig
from solon_fl.errors import GroupFailedError
from solon_fl.strategies.comparing import LARGEST_NOISE, compare, same_bits

__all__ = ["MARGIN", "Calibration", "Findings", "Replies"]

MARGIN = 4.0  # rtol / noise: other rounds may be noisier, and the shares of other slots smaller
FLOORS = {torch.float32: 1e-6, torch.float64: 1e-12}  # smallest rtol by the shares' dtype, as encoding rounds, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How far apart the nodes' shares are, and the ``rtol`` that follows from it.

    Attributes
    ----------
    noise : float
        The largest distance of a share from its group's reference, relative to the reference, over each class of
        tensors (parameters, buffers). The ``liars`` farthest nodes of each group are left out.
    rtol : float
        The value to use: 4 times ``noise``, at least 1e-6 (1e-12 for float64 shares), rounded up to two digits.
    certificate : float
        The worst relative error with that ``rtol``; see `Decoder`.
    identical : bool
        Whether the shares of every group were equal bit for bit, apart from outliers. One liar can make it False.
    exact : bool
        Whether code "exact" suits. This takes one more round, in which nodes use torch's deterministic kernels and send
        shares of that code. It suits if at least k + s shares of each group were equal bit for bit and at most
        ``liars`` were not. The round is played only if the model is float32 and either the config has code "exact" or
        at most ``liars`` nodes of each group differed before. Otherwise this is False.
    different : tuple of int
        Ids of the nodes whose shares in that round differed from those of most nodes of their group.
    distances : dict
        The largest relative distance from the reference, by node id, for all nodes that sent shares in groups that
        could be compared.
    outliers : tuple of int
        Ids of the nodes farther away than ``rtol``: they lie, are broken, or compute differently from the others.
    malformed : dict
        Maps the id of each node that sent something other than a share to the reason.
    silent : tuple of int
        Ids of the nodes that sent nothing.
    labels : dict
        The name of each node in the log, by id: its registered name, or else its id.
    groups : tuple of tuple of int
        Ids of the nodes, by group.
    warnings : tuple of str
        Problems found, each with a remedy.
    """

    noise: float
    rtol: float
    certificate: float
    identical: bool
    exact: bool
    different: tuple[int, ...]
    distances: dict[int, float]
    outliers: tuple[int, ...]
    malformed: dict[int, str]
    silent: tuple[int, ...]
    labels: dict[int, str]
    groups: tuple[tuple[int, ...], ...]
    warnings: tuple[str, ...]

    @property
    def finding(self) -> str:
        """Noise, rtol and certificate in one line, and whether code "exact" suits."""
        alike = "shares equal bit for bit" if self.identical else f"float noise between nodes {self.noise:.1e}"
        real = f"{alike}; rtol={self.rtol:g} suits, with certificate {self.certificate:.1e}"
        if not self.exact:
            return real
        nodes = f"all nodes but {_names(self.different, self.labels)}" if self.different else "all nodes"
        return f"{nodes} compute the same bits: code='exact' suits (code='fourier': {real})"

    def of_node(self, node_id: int) -> str:
        """Return what was found about a node, in words."""
        if node_id in self.malformed:
            return f"not a share: {self.malformed[node_id]}"
        if node_id in self.silent:
            return "silent"
        if node_id not in self.distances:
            return "its group could not be compared"
        distance = self.distances[node_id]
        kind = ", an outlier" if node_id in self.outliers else ", other bits" if node_id in self.different else ""
        return (f"{distance:.1e}" if distance else "0") + kind

    def __str__(self) -> str:
        """Return a table of all nodes, the finding, and the warnings."""
        width = max([len("node"), *(len(label) for label in self.labels.values())])
        lines = [f"group  {'node':<{width}}  distance"]
        for group, node_ids in enumerate(self.groups):
            lines += [f"{group:>5}  {self.labels[node]:<{width}}  {self.of_node(node)}" for node in node_ids]
        return "\n".join([*lines, self.finding, *(f"warning: {warning}" for warning in self.warnings)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """The replies of one round."""

    shares: dict[int, dict[int, Tensor]]  # by group and node id
    malformed: dict[int, str]
    silent: list[int]
    trusted: dict[int, Tensor] = field(default_factory=dict)  # the referee's shares, by group


@dataclass(kw_only=True)
class Findings:
    """The findings so far, over all groups and rounds."""

    liars: int
    noise: float = 0.0
    distances: dict[int, float] = field(default_factory=dict)
    unequal: set[int] = field(default_factory=set)  # ids of nodes whose share differed from the reference in some bit
    malformed: dict[int, str] = field(default_factory=dict)
    silent: dict[int, None] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    groups: dict[int, dict[int, None]] = field(default_factory=dict)
    odd_referee: bool = False  # whether in some group no node sent the referee's bits
    compared: bool = False
    asked_for_bits: bool = False
    fewest_equal: int = sys.maxsize  # nodes of a group that sent the same bits
    different: set[int] = field(default_factory=set)  # ids of nodes whose exact shares differed from most others'
    reasons: dict[int, str] = field(default_factory=dict)  # why a group could not be compared

    def take(self, replies: Replies, sections: Sections) -> None:
        """Add the replies of one round."""
        self.malformed |= replies.malformed
        self.silent |= dict.fromkeys(replies.silent)
        for group, of_group in replies.shares.items():
            node_ids, rows = list(of_group), list(of_group.values())
            result = compare(rows, self.liars, sections, replies.trusted.get(group))
            if isinstance(result, str):
                self.reasons[group] = result
                continue
            self.compared = True
            self.noise = max(self.noise, result.noise)
            for node_id, row, distance in zip(node_ids, rows, result.distances, strict=True):
                self.distances[node_id] = max(distance, self.distances.get(node_id, 0.0))
                if not same_bits(row, result.reference):
                    self.unequal.add(node_id)
            if group in replies.trusted and self.unequal.issuperset(node_ids):
                self.odd_referee = True

    @property
    def are_nearly_identical(self) -> bool:
        """Whether in every group all shares so far were equal, except those of at most ``liars`` nodes."""
        few = all(len(self.unequal & members.keys()) <= self.liars for members in self.groups.values())
        return self.compared and not self.reasons and few

    def take_bits(self, replies: Replies) -> None:
        """Add the replies of the round that only compares bits."""
        self.asked_for_bits = True
        self.malformed |= replies.malformed
        self.silent |= dict.fromkeys(replies.silent)
        for group, shares in replies.shares.items():
            bits = {node_id: share.numpy().tobytes() for node_id, share in shares.items()}
            (most, count), *_ = Counter(bits.values()).most_common(1) or [(b"", 0)]
            if group in replies.trusted:
                most = replies.trusted[group].numpy().tobytes()
                count = sum(of_node == most for of_node in bits.values())
            self.fewest_equal = min(self.fewest_equal, count)
            self.different |= {node_id for node_id, of_node in bits.items() if of_node != most}

    def _is_exact(self, config: SolonConfig) -> bool:
        few = all(len(self.different & members.keys()) <= self.liars for members in self.groups.values())
        return self.asked_for_bits and few and self.fewest_equal >= config.num_agreeing

    def conclude(self, config: SolonConfig, real: RealCode, dtype: torch.dtype) -> Calibration:
        """Return the result.

        Raises
        ------
        GroupFailedError
            If no group could be compared.
        """
        if not self.compared:
            group, reason = next(iter(self.reasons.items()))
            malformed = next((f"; node {self.labels[n]} sent: {text}" for n, text in self.malformed.items()), "")
            raise GroupFailedError(
                f"no group could be compared, so the noise is unknown; group {group}: {reason}{malformed}"
            )
        rtol = _rounded_up(max(MARGIN * self.noise, FLOORS[dtype]))
        certificate = worst_relative_error(real, rtol)
        outliers = tuple(node_id for node_id, distance in self.distances.items() if distance > rtol)
        return Calibration(
            noise=self.noise,
            rtol=rtol,
            certificate=certificate,
            identical=not self.reasons and not self.unequal - set(outliers),
            exact=self._is_exact(config),
            different=tuple(sorted(self.different)),
            distances=self.distances,
            outliers=outliers,
            malformed=self.malformed,
            silent=tuple(self.silent),
            labels=self.labels,
            groups=tuple(tuple(node_ids) for node_ids in self.groups.values()),
            warnings=tuple(self._warnings(config, outliers, certificate)),
        )

    def _warnings(self, config: SolonConfig, outliers: Collection[int], certificate: float) -> list[str]:
        found = [f"group {group} could not be compared: {reason}" for group, reason in self.reasons.items()]
        if certificate >= 1 and config.code != "exact":
            found.append(
                f"the certificate is {certificate:.1e} but should be below 1: lower byzantine or compression, raise "
                "group_size, give the nodes the same hardware, versions and number of threads, or compute in float64."
            )
        if self.odd_referee and config.needs_equal_bits:
            found.append(
                "no node computes the same bits as the referee, which code='exact' and digests require: give the "
                "referee the nodes' hardware and software."
            )
        names = _names(sorted(self.different), self.labels)
        if config.code == "exact" and not self._is_exact(config):
            found.append(
                f"code='exact' needs {config.num_agreeing} nodes of each group that compute the same bits; got "
                f"{self.fewest_equal if self.asked_for_bits else 'too few'}"
                f"{f' (different: {names})' if self.different else ''}: give all nodes the same hardware and software, "
                "or use code='fourier'."
            )
        elif config.code == "exact" and self.different:
            found.append(
                f"{names} would be among the {config.byzantine} nodes of a group whose shares may be wrong, because of "
                "different bits: leave such nodes out, or give them the hardware and software of the others."
            )
        near = [node_id for node_id in outliers if self.distances[node_id] <= LARGEST_NOISE]
        if near:
            found.append(
                f"{_names(near, self.labels)} may lie, or have other hardware or software: if you trust all nodes now, "
                "calibrate with liars=0, which makes rtol large enough for these."
            )
        for group, members in self.groups.items():
            bad = members.keys() & {*outliers, *self.malformed}
            if len(bad) > config.byzantine:
                found.append(
                    f"group {group} has {len(bad)} nodes that lie or fail, more than byzantine={config.byzantine}: it "
                    "can't be decoded."
                )
        return found


def _rounded_up(value: float) -> float:
    """Return the value rounded up to two significant digits."""
    return float(Context(prec=2, rounding=ROUND_CEILING).create_decimal(Decimal(repr(value))))


def _names(node_ids: Collection[int], labels: Mapping[int, str]) -> str:
    shown = ", ".join(labels[node_id] for node_id in list(node_ids)[:5])
    return f"nodes {shown}{', ...' if len(node_ids) > 5 else ''}" if len(node_ids) > 1 else f"node {shown}"
