"""Decoding one group: from shares, of which some are lies and some are missing, to the exact gradient.

Steps (the numbers are those of docs/explanation/the-code.md): 1 validate, 2 compare, and if that is not enough
3 project, 4 screen the scale and check the syndromes, 5 locate, 6 solve and check all columns; 7 report. If that
fails, and the decoder is told to go on: docs/explanation/beyond-the-bound.md.
"""

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from solon_fl.checks import check_between, check_one_of, check_whole
from solon_fl.errors import ConfigurationError

from ._types import FloatArray
from .beyond import only_supported_gradient
from .code import Code
from .decoded import Decoded, DecodeStatus
from .locating import LocatingProblem, Locator, Support
from .locators import SubspaceLocator, default_locator, locate_rows
from .projection import LARGEST_NORM, NOISE_MARGIN, SMALLEST_NUMBER, UNDERESTIMATE, Projector
from .solving import Interpolation, Solution, interpolate, least_squares
from .verdict import Verdict, judge

__all__ = [
    "BeyondBound",
    "CertificateWarning",
    "DecodeStatus",
    "Decoded",
    "Decoder",
    "Memory",
    "locates_every_lie",
    "smallest_group",
    "worst_relative_error",
]

BeyondBound = Literal["reject", "accept"]
LOUD = 100.0  # times the noise: what a fast pass is tried, or given up, for; the value costs time only
GLANCE = 8  # liars are guessed from some columns only if all are this many times as many; the value costs time only
FINITE = 1e60  # the same, for a pass that is to go on to the end
MAX_LOOKS = 2  # at the shares of one group, the second closer than the first
LIKELY = 2.0  # times the noise: what projected noise is seldom beyond (up to NOISE_MARGIN); no part of any proof


class CertificateWarning(UserWarning):
    """Few liars could do harm: ruin the gradient from just below rtol, or, in large groups, make rounds fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Screened:
    """The shares that are left after the screening.

    Attributes
    ----------
    slots : list of int
        Slots of the finite shares.
    alive : list of int
        Those that are not absurd.
    noise : float
        Norm of what honest shares may disagree by.
    max_errors : int
        Lies among the alive that can be located.
    liars : int
        Lies that there may be among the alive: `max_errors`, or what is left of s, if that is more.
    """

    slots: list[int]
    alive: list[int]
    noise: float
    max_errors: int
    liars: int

    @property
    def tolerance(self) -> float:
        """The residual up to which a projected one may have been within 3 `noise`."""
        return UNDERESTIMATE * NOISE_MARGIN * self.noise


class Memory:
    """What earlier decodes of a group have learnt, for the next one of the same shares and some more.

    Parameters
    ----------
    generator : torch.Generator, optional
        See `Decoder.decode`.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self._generator = generator
        self._projector: Projector | None = None

    @property
    def is_disputed(self) -> bool:
        """Whether the shares had to be projected."""
        return self._projector is not None

    @property
    def projector(self) -> Projector:
        """That of all columns; drawn when it is first asked for."""
        if self._projector is None:
            self._projector = self.new_projector()
        return self._projector

    def new_projector(self) -> Projector:
        """Return one for some of the columns."""
        return Projector(self._generator)


class Decoder:
    """Recovers a group's gradient from its shares, though s of them may be lies and e may be missing.

    Parameters
    ----------
    code : Code
        What the shares are encoded with; its group_size r must be at least 2 s + e + k.
    byzantine : int
        s, nodes of the group that may lie, >= 0.
    stragglers : int
        e, nodes of the group that may not answer, >= 0.
    rtol : float
        Largest distance of an honest share from G[j] X, relative to the k-th smallest norm of the honest shares:
        float noise. 1e-6 suits float32 shares of nodes with the same hardware and software.
    locator : Locator, optional
        Used alone, whatever it misses. Default: in each decode `ExhaustiveLocator` where it can try all supports
        (up to r = 23 at s = 5, r = 88 at s = 3), else `InformationSetLocator`, or `SubspaceLocator` where that can't
        draw often enough (from about r = 36 on).
    beyond_bound : "reject" or "accept"
        What becomes of more lies than the guarantee covers, where otherwise the decode would fail or fewer than k + s
        shares agree with its result. "accept" takes a gradient if it is the only one that k + 1 or more shares agree
        with: right if k + 1 of those that arrived are honest, that is, for up to n - k - 1 lies among n shares. The
        status is then BEYOND_BOUND. Needs k + s + 1 shares, and at most 3 million sets of k + 1 of them.

    Raises
    ------
    ConfigurationError
        If group_size < 2 s + e + k, or a number is out of its range.

    Warns
    -----
    CertificateWarning
        If `certificate` is 1 or more, or the group is too large to locate every lie for certain.

    Notes
    -----
    Guarantee: as long as 2 * lies + erasures <= r - k and honest shares are within rtol of the truth, `decode`
    returns a gradient within its own `error_bound`; it fails only if the locator misses the liars (an exhaustive one
    does so with a probability of 1e-8). Beyond that budget it reports a failure, unless the liars agree on the
    shares of another gradient, which nothing can detect. If more than e honest shares may be missing, trust results
    with which k + s shares agree (`Decoded.num_agreeing`), as `SolonStrategy` does: s liars can't bring those about.

    Examples
    --------
    Two of seven nodes lie; each share is a third of the gradient.

    >>> import torch
    >>> from solon_fl import Decoder, FourierCode
    >>> code = FourierCode(group_size=7, compression=3)
    >>> decoder = Decoder(code, byzantine=2)
    >>> gradient = torch.linspace(-1, 1, 9)
    >>> shares = {slot: code.encode(gradient, slot) for slot in range(7)}
    >>> shares[1] = -100 * shares[1]
    >>> shares[4] = torch.full((3,), 7.0)
    >>> decoded = decoder.decode(shares)
    >>> decoded.corrupt_slots
    (1, 4)
    >>> torch.allclose(decoded.gradient, gradient, atol=1e-6)
    True
    """

    def __init__(
        self,
        code: Code,
        *,
        byzantine: int,
        stragglers: int = 0,
        rtol: float = 1e-6,
        locator: Locator | None = None,
        beyond_bound: BeyondBound = "reject",
    ) -> None:
        smallest = smallest_group(byzantine=byzantine, compression=code.compression, stragglers=stragglers)
        if code.group_size < smallest:
            raise ConfigurationError(
                "group_size must be at least 2*byzantine + stragglers + compression; "
                f"got group_size={code.group_size}, byzantine={byzantine}, stragglers={stragglers}, "
                f"compression={code.compression}; raise group_size to {smallest}, or lower one of the others."
            )
        check_between("rtol", rtol, 0, 1, "1e-6 suits float32 shares")
        check_one_of("beyond_bound", beyond_bound, get_args(BeyondBound))
        self.code = code
        self.byzantine = byzantine
        self.stragglers = stragglers
        self.rtol = rtol
        self.locator = locator
        self.beyond_bound = beyond_bound
        self._amplifications: dict[int, float] = {}  # by number of rows; asked for in every decode
        doubt = self._doubt()
        if doubt:
            warnings.warn(f"{doubt}; lower byzantine or compression.", CertificateWarning, stacklevel=2)

    def _doubt(self) -> str:
        """Return what liars may be able to do although they are few enough; "" if they can't."""
        if self.certificate >= 1:
            return (
                f"the certificate of {self!r} is {self.certificate:.1e}, but should be below 1: "
                f"liars just below rtol={self.rtol:g} could change the gradient by more than its own size; "
                "raise group_size, send float64 shares with a smaller rtol"
            )
        if self.locator is None and not locates_every_lie(self.code.group_size, self.code.compression):
            return (
                f"{self!r} is too large to locate every lie for certain: adaptive liars could make rounds fail, though "
                "they could not make a gradient wrong"
            )
        return ""

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.code!r}, byzantine={self.byzantine}, stragglers={self.stragglers}, "
            f"rtol={self.rtol:g})"
        )

    @cached_property
    def certificate(self) -> float:
        """Bound on a decode's relative error in the worst case that the tolerance lets through.

        All s liars collude just below the tolerance, the worst rows are left, and every honest share is off by rtol;
        the gradient's chunks are taken to be of equal norm and uncorrelated, as those of real gradients nearly are.
        What a single decode can vouch for, `Decoded.error_bound`, is mostly far smaller.
        """
        return worst_relative_error(self.code, self.rtol)

    def expected_error(self, num_shares: int) -> float:
        """Return about the largest `Decoded.error_bound`, by the gradient's norm, of so many shares that agree.

        They are k + s at least, and disagree by as much as passes for noise.
        """
        honest = max(num_shares - self.byzantine, self.code.compression)
        of_fewest = worst_relative_error(self.code, self.rtol, NOISE_MARGIN)
        return of_fewest * self._amplification(honest) / self.code.amplification

    def decode(
        self,
        shares: Mapping[int, Tensor] | Tensor,
        *,
        dim: int | None = None,
        generator: torch.Generator | None = None,
        last: bool = True,
        needed: int = 0,
        memory: Memory | None = None,
    ) -> Decoded:
        """Recover the group's gradient from its shares, naming the slots that lied.

        Parameters
        ----------
        shares : mapping from slot to (m,) Tensor, or (r, m) Tensor
            float32 or float64, one device. Slots not in the mapping are erasures, and so are shares that hold
            NaN or inf (or numbers beyond 1e150), and shares of another length or dtype than most.
        dim : int, optional
            d, the gradient's length; shares of another length than ceil(d / k) are erasures. Default: k m, which
            is d or d padded with zeros.
        generator : torch.Generator, optional
            Draws the projection. Only for reproducible simulation: by default fresh entropy that no node
            can know is drawn after the shares have arrived.
        last : bool
            False if more shares may come: `beyond_bound` then counts as "reject".
        needed : int
            Shares that must agree with a result, or it is of no use, and is not looked for.
        memory : Memory, optional
            One for all decodes of one group in one round, whose shares stay: none is then projected twice. Its
            generator is used.

        Returns
        -------
        Decoded
            A failure is a status there, never an exception.

        Raises
        ------
        ConfigurationError
            If `shares` names slots that do not exist, or dim < 1.

        Notes
        -----
        Guarantee: see the class. Cost, if all lies are loud: (r - k) k m multiply-adds in the shares' dtype, twice as
        many unless k divides r. Else r m (q + 1) in float64 to project and r m r to solve and to check. Beside the
        result, a few MB for any m. Locating looks at an r x q matrix only. benchmarks/attacked_round.py measures what
        liars can make of that.

        References
        ----------
        Chen et al., "Solon", arXiv:2110.01595, for the scheme.
        """
        compression = self.code.compression
        rows = _alike(self._by_slot(shares), None if dim is None else self.code.share_dim(dim))
        if dim is None:
            dim = compression * next((share.numel() for share in rows.values()), 0)
        memory = memory or Memory(generator)
        decoded = self._decode_within_bound(rows, dim, max(needed, compression), memory)
        certain = decoded.num_agreeing >= compression + self.byzantine
        if self.beyond_bound == "reject" or certain or not last or len(rows) < compression:
            return decoded
        return self._decode_beyond_bound(rows, dim, memory) or decoded

    def _by_slot(self, shares: Mapping[int, Tensor] | Tensor) -> Mapping[int, Tensor]:
        """Check the form in which the shares are given, and return them by slot."""
        group_size = self.code.group_size
        if not isinstance(shares, Tensor | Mapping):
            raise ConfigurationError(
                "shares must be a mapping from slot to share, or one (r, m) tensor; "
                f"got {type(shares).__name__}; make a dict of the slots that arrived."
            )
        if isinstance(shares, Tensor):
            if shares.dim() != 2 or shares.shape[0] != group_size:
                raise ConfigurationError(
                    f"shares must be ({group_size}, m) for group_size={group_size}; "
                    f"got shape={tuple(shares.shape)}; pass a mapping from slot to share if some are missing."
                )
            return dict(enumerate(shares))
        unknown = sorted(slot for slot in shares if not 0 <= slot < group_size)
        if unknown:
            raise ConfigurationError(
                f"slots must be in 0..{group_size - 1} (group_size={group_size}); got slots={unknown}."
            )
        return shares

    def _decode_within_bound(self, rows: Mapping[int, Tensor], dim: int, needed: int, memory: Memory) -> Decoded:
        """Decode shares of one length, dtype and device, by slot; at least `needed` of them must agree."""
        if len(rows) < needed:
            return self._failed(DecodeStatus.TOO_FEW_SHARES, sorted(rows))
        if not memory.is_disputed and (decoded := self._decode_fast(rows, dim, needed, memory)) is not None:
            return decoded
        slots, projected, norms = memory.projector.project_finite(rows)
        if len(slots) < needed:
            return self._failed(DecodeStatus.TOO_FEW_SHARES, slots)
        screened = self._screen(slots, norms, rows)
        problem = self._problem(screened, projected, needed)
        solution = self._look(problem, screened, [rows[slot] for slot in screened.alive], dim)
        if solution is not None and solution.residual <= screened.tolerance:
            return self._decoded(screened, solution, rows)
        liars_left = self.byzantine - (len(slots) - len(screened.alive))
        more_would_do = problem.max_errors < min(screened.max_errors, liars_left)
        return self._failed(DecodeStatus.TOO_FEW_SHARES if more_would_do else DecodeStatus.UNDECODABLE, slots)

    def _decode_fast(self, rows: Mapping[int, Tensor], dim: int, needed: int, memory: Memory) -> Decoded | None:
        """Step 2: decode in a pass if all shares agree, in two if lies are loud from the start; None if in doubt."""
        slots = sorted(rows)
        shares, generator = [rows[slot] for slot in slots], self.code.generator[slots]
        found, seen = interpolate(generator, (), shares, dim, LOUD * self.rtol), math.inf
        if isinstance(found, slice) and found.start == 0 and found.stop * GLANCE <= shares[0].numel():
            accused, seen = self._loud(found, rows, needed, memory)
            found = interpolate(generator, accused, shares, dim, FINITE) if accused else None
        if not isinstance(found, Interpolation):
            return None
        screened = self._screen(slots, found.row_norms, rows)
        small = [row for row, accused_row in enumerate(found.support) if slots[accused_row] in screened.alive]
        certain = (
            len(small) <= screened.max_errors  # then no row is absurd that is not accused
            and len(found.support) - len(small) == len(slots) - len(screened.alive)
            and seen >= NOISE_MARGIN * screened.noise
            and self._is_certain(found, screened)
        )
        if not certain:
            return None
        support = tuple(screened.alive.index(slots[found.support[row]]) for row in small)
        lies, rounding = found.lies[small], found.lies_rounding[small]
        return self._decoded(screened, replace(found, support=support, lies=lies, lies_rounding=rounding), rows)

    def _loud(self, columns: slice, rows: Mapping[int, Tensor], needed: int, memory: Memory) -> tuple[Support, float]:
        """Guess the liars from a few columns; return them, and a residual that they would have left there."""
        part = {slot: rows[slot][columns] for slot in sorted(rows)}
        slots, projected, norms = memory.new_projector().project_finite(part)
        if len(slots) < len(rows):
            return (), 0.0
        screened = self._screen(slots, norms, rows)
        problem = self._problem(screened, projected, needed)
        problem = replace(problem, tolerance=LOUD * screened.noise)
        kept = set(screened.alive) - {screened.alive[row] for row in locate_rows(self.locator, problem) or ()}
        return tuple(row for row, slot in enumerate(slots) if slot not in kept), problem.tolerance

    def _is_certain(self, found: Interpolation, screened: _Screened) -> bool:
        """Return whether the rows kept agree, whatever rounding did."""
        return (
            found.residual <= screened.noise < LARGEST_NORM * self.rtol
            and found.residual + found.residual_rounding <= screened.tolerance
            and bool(np.isfinite(found.lies_rounding).all())
        )

    def _look(self, problem: LocatingProblem, screened: _Screened, rows: list[Tensor], dim: int) -> Solution | None:
        """Steps 5 and 6. Look closer once if the rows kept disagree by more than noise, for then one is a lie."""
        solution = None
        for _ in range(MAX_LOOKS):
            support = locate_rows(self.locator, problem, LIKELY * screened.noise)
            if support is None:
                break
            solution = self._solve(problem, support, screened, rows, dim)
            if solution.residual <= screened.noise:
                break
            problem = replace(problem, tolerance=problem.residual(support) / 2)
        return solution

    def _solve(
        self, problem: LocatingProblem, support: Support, screened: _Screened, rows: list[Tensor], dim: int
    ) -> Solution:
        """Step 6: solve without the rows of the support; in a fast pass if all of these seem to be loud lies."""
        if support and problem.deviations(support).min() > LOUD * screened.noise:
            found = interpolate(problem.generator, support, rows, dim, FINITE)
            if isinstance(found, Interpolation) and self._is_certain(found, screened):
                return found
        return least_squares(problem.generator, support, rows, dim)

    def _decode_beyond_bound(self, rows: Mapping[int, Tensor], dim: int, memory: Memory) -> Decoded | None:
        """Return the only gradient that k + 1 or more shares agree with; None if there is none, or more than one.

        Right if k + 1 shares are honest, for these agree with the truth. So that s liars can't make anything up,
        k + s + 1 shares must be there.
        """
        slots, projected, norms = memory.projector.project_finite(rows)
        if len(slots) <= self.code.compression + max(self.byzantine, 1):
            return None
        noise = self.rtol * norms + self._smallest_noise(rows[slots[0]])
        found = only_supported_gradient(self.code, slots, projected, norms, noise, [rows[s] for s in slots], dim)
        return found and replace(found, erased_slots=self._absent(slots))

    def _screen(self, slots: list[int], norms: FloatArray, rows: Mapping[int, Tensor]) -> _Screened:
        """Step 4: drop the absurd shares, and say how much noise and how many lies the others may hold.

        `slots` are those of the finite shares, `norms` theirs.
        """
        code = self.code
        floor = self._smallest_noise(rows[slots[0]])
        alive, scale = self._without_absurd_rows(norms, floor)
        max_errors = (len(alive) - code.compression) // 2  # 2 * lies + erasures <= r - k, dropped rows being erasures
        return _Screened(
            slots=slots,
            alive=[slots[row] for row in alive],
            noise=math.sqrt(code.group_size) * (self.rtol * scale + floor),  # of r rows: it must not grow with n
            max_errors=max_errors,
            liars=max(max_errors, self.byzantine - (len(slots) - len(alive))),
        )

    def _without_absurd_rows(self, norms: FloatArray, floor: float) -> tuple[list[int], float]:
        """Drop rows so large that no gradient explains them together with the others; return the rest and the scale.

        If l of the rows may be lies (the budget's (n - k) // 2, or s if that is more), k of the l + k smallest are
        honest, and those k fix the gradient: its norm is at most amplification * sqrt(k) times the largest of them, and
        no honest row is larger than that. What is dropped is thus certainly a lie; left in, it could drown small lies
        in the rounding of float64.

        The scale, the norm of the largest of those l + k, is at least that of the k-th smallest honest row (so it
        vanishes with the gradient only) and, if l + k rows are honest, at most that of the largest.
        """
        code, rtol = self.code, self.rtol
        order = np.argsort(norms).tolist()
        while True:
            spare = len(order) - code.compression
            liars = max(spare // 2, min(spare, self.byzantine - (len(norms) - len(order))))
            scale = float(norms[order[liars + code.compression - 1]])
            limit = (1.01 + 2 * rtol) * code.amplification * math.sqrt(code.compression) * (scale + 2 * floor)
            absurd = min(liars, sum(float(norms[row]) > limit for row in order))
            if absurd == 0:
                return sorted(order), scale
            order = order[:-absurd]

    def _smallest_noise(self, share: Tensor) -> float:
        """Return what k roundings next to zero can change a share by: rtol means nothing there."""
        limits = torch.finfo(share.dtype)
        step = max(limits.smallest_normal * limits.eps, SMALLEST_NUMBER)
        return self.code.compression * step * math.sqrt(share.numel())

    def _problem(self, screened: _Screened, projected: FloatArray, needed: int) -> LocatingProblem:
        """Return the problem of locating lies; `needed` rows must be left."""
        return LocatingProblem(
            generator=self.code.generator[screened.alive],
            projected=projected[[screened.slots.index(slot) for slot in screened.alive]],
            points=self.code.points[screened.alive],
            multipliers=self.code.multipliers[screened.alive],
            max_errors=max(min(screened.max_errors, len(screened.alive) - needed), 0),
            tolerance=NOISE_MARGIN * screened.noise,
        )

    def _decoded(self, screened: _Screened, solution: Solution, rows: Mapping[int, Tensor]) -> Decoded:
        if solution.support:
            generator, alive = self.code.generator[screened.alive], [rows[slot] for slot in screened.alive]
            verdict = judge(solution, generator, alive, screened.noise, screened.liars, self._amplification)
        else:
            honest = max(len(screened.alive) - screened.liars, self.code.compression)
            delta = solution.residual + solution.residual_rounding + screened.noise
            verdict = Verdict(self._amplification(honest) * delta + solution.rounding, frozenset())
        suspects = {screened.alive[row] for row in solution.support if row not in verdict.lies}
        kept = {slot for row, slot in enumerate(screened.alive) if row not in solution.support}
        corrupt = tuple(slot for slot in screened.slots if slot not in kept and slot not in suspects)
        return Decoded(
            gradient=solution.gradient,
            status=DecodeStatus.CORRECTED if len(kept) < len(screened.slots) else DecodeStatus.CLEAN,
            corrupt_slots=corrupt,
            suspect_slots=tuple(sorted(suspects)),
            erased_slots=self._absent(screened.slots),
            residual=solution.residual,
            tolerance=screened.tolerance,
            error_bound=verdict.error_bound,
            num_agreeing=len(kept),
        )

    def _amplification(self, num_rows: int) -> float:
        if num_rows not in self._amplifications:
            worst = self.code.worst_amplification(num_rows)  # a bound where the search would take too long
            self._amplifications[num_rows] = min(worst, self.code.amplification)
        return self._amplifications[num_rows]

    def _failed(self, status: DecodeStatus, slots: list[int]) -> Decoded:
        return Decoded.failed(status, self._absent(slots))

    def _absent(self, slots: list[int]) -> tuple[int, ...]:
        return tuple(sorted(set(range(self.code.group_size)) - set(slots)))


def worst_relative_error(code: Code, rtol: float, residual: float = UNDERESTIMATE * NOISE_MARGIN) -> float:
    """Return `Decoder.certificate`, which depends on nothing but the code and rtol.

    `residual` is what the rows kept may disagree by, in multiples of the noise: for the certificate, what passes for
    noise but for a probability of 1e-9; NOISE_MARGIN is what mostly does.
    """
    share_norms = float(np.linalg.norm(code.generator)) / math.sqrt(code.compression)  # of all r, by |gradient|
    return code.amplification * (residual + 1) * rtol * share_norms


def locates_every_lie(group_size: int, compression: int) -> bool:
    """Whether liars can't bring the default locator to find nobody, as far as is known; see `default_locator`."""
    locator = default_locator(group_size, compression, (group_size - compression) // 2)
    return not isinstance(locator, SubspaceLocator)


def smallest_group(*, byzantine: int, compression: int, stragglers: int = 0) -> int:
    """Return 2 s + e + k, the smallest group in which s liars are found without e nodes; check the three numbers."""
    check_whole("byzantine", byzantine, 0)
    check_whole("compression", compression, 1)
    check_whole("stragglers", stragglers, 0)
    return 2 * byzantine + stragglers + compression


def _alike(shares: Mapping[int, Tensor], share_dim: int | None) -> dict[int, Tensor]:
    """Return the shares of the commonest length, dtype and device: the honest ones, being k more than the liars."""
    kinds = {
        slot: (share.shape, share.dtype, share.device)
        for slot, share in shares.items()
        if share.dim() == 1 and share.numel() == (share_dim or share.numel()) > 0
        if share.dtype in (torch.float32, torch.float64)
    }
    if not kinds:
        return {}
    commonest, _ = Counter(kinds.values()).most_common(1)[0]
    return {slot: shares[slot].detach() for slot, kind in kinds.items() if kind == commonest}
