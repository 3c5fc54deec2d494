"""One decode of a group's shares. The steps are numbered as in docs/explanation/the-code.md."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from scipy import special
from torch import Tensor

from solon_fl.coding._types import FloatArray, IntArray
from solon_fl.coding.decoded import ClassOutcome, Decoded, DecodeStatus
from solon_fl.coding.sections import Sections

from .code import RealCode
from .locating import LocatingProblem, Locator, Support
from .locators import locate_rows
from .projection import BLOCK, LARGEST_NORM, NOISE_MARGIN, UNDERESTIMATE, Memory
from .screening import Screened, noise_of, scales, screen, smallest_noise
from .solving import Interpolation, Solution, interpolate, least_squares
from .verdict import judge

__all__ = ["RealDecoding"]

LOUD = 100.0  # lies above LOUD x noise take the fast path; affects speed, never results
GLANCE = 8  # guess the liars from a part of the columns if there are GLANCE times as many; affects speed, never results
FINITE = 1e60  # in place of LOUD in a fast pass that is to run to the end
MAX_LOOKS = 2  # attempts to locate lies in the shares of one group, the second with a smaller tolerance
MAX_REFINEMENTS = 3  # refinements of a result by single tensors
MAX_TENSORS = 8  # tensors that are examined by themselves in a refinement
DISTURBED = 2.5e-7  # a residual above DISTURBED x the tensor's norm is more than rounding: lies or noise
CHANCE = 1e-5  # probability that noise looks like lies in single tensors, which makes suspects of honest rows
LIKELY = 2.0  # projected noise seldom exceeds LIKELY x noise (at most NOISE_MARGIN x noise); not used in any proof

Project = Callable[[IntArray], FloatArray]


@dataclass(frozen=True, kw_only=True)
class RealDecoding:
    """The inputs of one decode, and its steps.

    Attributes
    ----------
    code, byzantine, rtol, locator
        See `RealDecoder`.
    amplification : callable
        `RealDecoder.amplification`.
    rows : mapping from slot to (m,) Tensor
        Shares of one length, dtype and device.
    dim : int
        d, the gradient's length.
    sections : Sections
        The tensors that the columns belong to.
    memory : Memory
        The memory of this group and round.
    """

    code: RealCode
    byzantine: int
    rtol: float
    locator: Locator | None
    amplification: Callable[[int], float]
    rows: Mapping[int, Tensor]
    dim: int
    sections: Sections
    memory: Memory

    def decode(self, needed: int, last: bool) -> Decoded:
        """See `Decoding.decode`."""
        if len(self.rows) < needed:
            return self._failed(DecodeStatus.TOO_FEW_SHARES, sorted(self.rows))
        if not self.memory.is_disputed and (decoded := self._decode_fast(needed)) is not None:
            return decoded
        slots, projected, norms = self.memory.projector.project_finite(self.rows, self.sections)
        if len(slots) < needed:
            return self._failed(DecodeStatus.TOO_FEW_SHARES, slots)
        screened = self._screen(slots, norms)
        problem = self._problem(screened, self.sections.by_class(projected), screened.noise, needed)
        solution = self._look(problem, screened)
        if solution is not None and solution.fits(screened.tolerance):
            solution = self._refined(solution, screened, norms, needed, lambda odd: projected[odd])
            return self._decoded(screened, solution)
        liars_left = self.byzantine - (len(slots) - len(screened.alive))
        if problem.max_errors < min(screened.max_errors, liars_left):  # more shares would help
            return self._failed(DecodeStatus.TOO_FEW_SHARES, slots)
        return self._failed(DecodeStatus.UNDECODABLE, slots, self._failing(solution, screened, projected, needed))

    def _decode_fast(self, needed: int) -> Decoded | None:
        """Step 2: decode in one pass if all shares agree, in two if lies are loud from the start; None if in doubt."""
        slots = sorted(self.rows)
        shares, generator = [self.rows[slot] for slot in slots], self.code.generator[slots]
        found, seen = self._interpolate(generator, (), shares, LOUD * self.rtol), math.inf
        glanced: list[int] = []
        if isinstance(found, slice) and found.start == 0 and found.stop * GLANCE <= self.sections.num_columns:
            glanced = [self.sections.classes[number] for number, _ in self.sections.pieces(0, found.stop)]
            accused, seen = self._loud(found, needed)
            found = self._interpolate(generator, accused, shares, FINITE) if accused else None
        if not isinstance(found, Interpolation):
            return None
        screened = self._screen(slots, found.row_norms)
        small = [row for row, accused_row in enumerate(found.support) if slots[accused_row] in screened.alive]
        certain = (
            len(small) <= screened.max_errors  # and every absurd row is accused
            and len(found.support) - len(small) == len(slots) - len(screened.alive)
            and (seen >= NOISE_MARGIN * screened.noise[glanced]).all()
            and self._is_certain(found, screened)
        )
        if not certain:
            return None
        support = tuple(screened.alive.index(slots[found.support[row]]) for row in small)
        lies, rounding = found.lies[:, small], found.lies_rounding[:, small]
        solution = replace(found, support=support, lies=lies, lies_rounding=rounding)
        refined = self._refined(solution, screened, found.row_norms, needed, partial(self._project, slots))
        return self._decoded(screened, refined)

    def _loud(self, columns: slice, needed: int) -> tuple[Support, float]:
        """Guess the liars from a few columns; return them, and the smallest residual of such lies there."""
        part = {slot: self.rows[slot][columns] for slot in sorted(self.rows)}
        here = replace(self, rows=part, sections=Sections.whole(columns.stop - columns.start))
        slots, projected, norms = self.memory.new_projector().project_finite(part, here.sections)
        if len(slots) < len(self.rows):
            return (), 0.0
        screened = here._screen(slots, norms)
        problem = here._problem(screened, projected, screened.noise, needed)
        problem = replace(problem, tolerance=LOUD * float(screened.noise[0]))
        kept = set(screened.alive) - {screened.alive[row] for row in locate_rows(self.locator, problem) or ()}
        return tuple(row for row, slot in enumerate(slots) if slot not in kept), problem.tolerance

    def _project(self, slots: list[int], odd: IntArray) -> FloatArray:
        shares = [self.rows[slot] for slot in slots]
        return self.memory.new_projector().project_tensors(shares, self.sections, odd.tolist())[0]

    def _is_certain(self, found: Interpolation, screened: Screened) -> bool:
        """Return whether the kept rows agree, whatever the rounding errors."""
        hidden = self.sections.norms_by_class(found.residual) + self.sections.norms_by_class(found.residual_rounding)
        return (
            found.fits(screened.noise)
            and bool((screened.noise < LARGEST_NORM * self.rtol).all())
            and bool((hidden <= screened.tolerance).all())
            and bool(np.isfinite(found.lies_rounding).all())
        )

    def _screen(self, slots: list[int], norms: FloatArray) -> Screened:
        """Step 4; `norms` are the norms of the slots in each tensor, (C, n)."""
        by_class = self.sections.norms_by_class
        return screen(
            *(self.code, slots, by_class(norms), by_class(self._smallest)), rtol=self.rtol, byzantine=self.byzantine
        )

    @cached_property
    def _smallest(self) -> FloatArray:
        """See `smallest_noise`."""
        dtype = next(iter(self.rows.values())).dtype
        return smallest_noise(self.sections, self.code.compression, dtype)

    def _problem(self, screened: Screened, projected: FloatArray, noise: FloatArray, needed: int) -> LocatingProblem:
        """Return the problem of locating lies among the rows that passed the screening; `needed` rows must be left.

        `projected` are the projected slots, (parts, n, q). Each part has its own `noise`, (parts,). The parts are
        scaled to the largest noise and added.
        """
        largest = float(noise.max())
        return LocatingProblem(
            generator=self.code.generator[screened.alive],
            projected=np.einsum("c,cnq->nq", largest / noise, projected[:, screened.rows]),
            points=self.code.points[screened.alive],
            multipliers=self.code.multipliers[screened.alive],
            max_errors=self._most_errors(screened, needed),
            tolerance=NOISE_MARGIN * math.sqrt(len(noise)) * largest,
        )

    def _most_errors(self, screened: Screened, needed: int) -> int:
        return max(min(screened.max_errors, len(screened.alive) - needed), 0)

    def _look(self, problem: LocatingProblem, screened: Screened) -> Solution | None:
        """Steps 5 and 6. If the kept rows disagree by more than noise, one lies: locate with a smaller tolerance."""
        solution, noise = None, problem.tolerance / NOISE_MARGIN
        for _ in range(MAX_LOOKS):
            support = locate_rows(self.locator, problem, LIKELY * noise)
            if support is None:
                break
            loud = bool(support) and problem.deviations(support).min() > LOUD * noise
            solution = self._solve(support, screened, fast=loud)
            if solution.fits(screened.noise):
                break
            problem = replace(problem, tolerance=problem.residual(support) / 2)
        return solution

    def _locate(self, problem: LocatingProblem) -> Support | None:
        return locate_rows(self.locator, problem, LIKELY / NOISE_MARGIN * problem.tolerance)

    def _solve(self, support: Support, screened: Screened, *, fast: bool) -> Solution:
        """Step 6: solve without the rows of the support. If `fast`, try a fast pass, and use it if it is certain."""
        generator, rows = self.code.generator[screened.alive], [self.rows[slot] for slot in screened.alive]
        if fast:
            found = self._interpolate(generator, support, rows, FINITE)
            if isinstance(found, Interpolation) and self._is_certain(found, screened):
                return found
        return least_squares(generator, support, rows, self.dim, self.sections)

    def _interpolate(
        self, generator: FloatArray, support: Support, rows: list[Tensor], loud: float
    ) -> Interpolation | slice | None:
        return interpolate(generator, support, rows, self.dim, self.sections, loud)

    def _refined(
        self, solution: Solution, screened: Screened, norms: FloatArray, needed: int, project: Project
    ) -> Solution:
        """Step 7: also leave out rows that disagree in single tensors by more than the noise of such a tensor.

        This neither accuses a node nor fails the decode, because the noise of the class alone can cause it.

        norms : the norms of the slots in each tensor, (C, n)
        project : maps the numbers of tensors to their projections
        """
        scale = scales(norms[:, screened.rows], screened.liars, self.code.compression)
        noise = noise_of(self.code, scale, self._smallest, self.rtol)
        odd = _odd_tensors(solution, noise)
        for _ in range(MAX_REFINEMENTS):
            support = self._locate_in(odd, solution.support, screened, noise, needed, project)
            if not support:
                break
            better = self._solve(tuple(sorted({*solution.support, *support})), screened, fast=True)
            if not better.fits(screened.tolerance):
                break
            solution, odd = better, _odd_tensors(better, noise)
        return replace(self._with_zeros(solution, screened), odd=tuple(sorted(odd.tolist())))

    def _locate_in(
        self, odd: IntArray, known: Support, screened: Screened, noise: FloatArray, needed: int, project: Project
    ) -> Support:
        """Return rows, besides the known ones, that explain the disagreement in all odd tensors, or in an early one."""
        if not len(odd) or len(known) >= self._most_errors(screened, needed):
            return ()
        projected = project(odd)
        left = [row for row in range(len(screened.alive)) if row not in known]
        alone = range(min(len(odd), MAX_TENSORS)) if len(odd) > 1 else ()
        parts = [slice(None), *(slice(number, number + 1) for number in alone)]
        for part in parts:
            problem = self._problem(screened, projected[part], noise[odd[part]], needed)
            problem = _without_rows(problem, known, left)
            support = self._locate(problem)
            if support:
                syndromes = problem.parity @ projected[part][:, [screened.rows[row] for row in left]]
                columns = _columns_that_tell(syndromes, noise[odd[part]], self.sections.widths[odd[part]])
                if _chance(problem, support, columns) <= CHANCE:
                    return tuple(left[row] for row in support)
        return ()

    def _with_zeros(self, solution: Solution, screened: Screened) -> Solution:
        """Set the columns to 0 in which k + s' shares are 0, because k of these are honest.

        This is done only in tensors that have more than rounding errors. The removed values add to the error bound.
        """
        disturbed = np.flatnonzero(solution.residual > DISTURBED * solution.norms)
        needed = self.code.compression + screened.liars
        if not len(disturbed) or needed > len(screened.alive):
            return solution
        removed = np.zeros_like(solution.rounding)
        for number, cut in self.sections.blocks(BLOCK, disturbed.tolist()):
            zeros = torch.stack([self.rows[slot][cut] == 0 for slot in screened.alive]).sum(0)
            columns = solution.columns[cut]
            gone = columns[zeros >= needed]
            removed[number] = math.hypot(removed[number], float(torch.linalg.vector_norm(gone, dtype=torch.float64)))
            columns[zeros >= needed] = 0
        return replace(solution, rounding=solution.rounding + removed)

    def _decoded(self, screened: Screened, solution: Solution) -> Decoded:
        """Step 8."""
        generator, alive = self.code.generator[screened.alive], [self.rows[slot] for slot in screened.alive]
        verdict = judge(solution, generator, alive, screened.noise, screened.liars, self.amplification)
        suspects = {screened.alive[row] for row in solution.support if row not in verdict.lies}
        kept = {slot for row, slot in enumerate(screened.alive) if row not in solution.support}
        corrupt = tuple(slot for slot in screened.slots if slot not in kept and slot not in suspects)
        by_class = self.sections.norms_by_class
        values = by_class(solution.norms), by_class(solution.residual), screened.tolerance, verdict.error_bound
        decoded = Decoded.of_classes(
            ClassOutcome.of_arrays(self.sections.names, *values),
            gradient=solution.gradient,
            status=DecodeStatus.CORRECTED if len(kept) < len(screened.slots) else DecodeStatus.CLEAN,
            num_agreeing=len(kept),
        )
        return replace(
            decoded,
            corrupt_slots=corrupt,
            suspect_slots=tuple(sorted(suspects)),
            erased_slots=self._absent(screened.slots),
            odd_tensors=solution.odd,
        )

    def _failing(
        self, solution: Solution | None, screened: Screened, projected: FloatArray, needed: int
    ) -> tuple[str, ...]:
        """Return the names of the classes in which no allowed set of lies explains the disagreement."""
        names, by_class = self.sections.names, self.sections.by_class(projected)
        if solution is not None:
            failing = self.sections.norms_by_class(solution.residual) > screened.tolerance
        else:
            problems = [
                self._problem(screened, by_class[number : number + 1], screened.noise[number : number + 1], needed)
                for number in range(len(names))
            ]
            failing = np.array([self._locate(problem) is None for problem in problems])
        return tuple(name for name, fails in zip(names, failing, strict=True) if fails) or names

    def _failed(self, status: DecodeStatus, slots: Sequence[int], classes: tuple[str, ...] = ()) -> Decoded:
        return Decoded.failed(status, self._absent(slots), classes)

    def _absent(self, slots: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted(set(range(self.code.group_size)) - set(slots)))


def _odd_tensors(solution: Solution, noise: FloatArray) -> IntArray:
    """Return the numbers of the tensors in which the kept rows disagree by more than noise, the oddest first."""
    hidden = solution.residual + solution.residual_rounding
    odd = np.flatnonzero((solution.residual > noise) | (hidden > UNDERESTIMATE * NOISE_MARGIN * noise))
    return odd[np.argsort(-solution.residual[odd] / noise[odd], kind="stable")]


def _columns_that_tell(syndromes: FloatArray, noise: FloatArray, widths: FloatArray) -> float:
    """Return the effective number of columns behind syndromes, (parts, n - k, q), weighting parts by disagreement."""
    weights = (np.linalg.norm(syndromes, axis=(1, 2)) / noise) ** 2
    return float(weights.sum() ** 2 / (weights**2 / widths).sum())


def _chance(problem: LocatingProblem, support: Support, num_columns: float) -> float:
    """Return a bound on the probability that a support of this size lowers the residual of mere noise as far."""
    ratio = problem.residual(support) / problem.residual(())
    num_rows, compression = problem.generator.shape
    independent = min(num_columns, problem.projected.shape[1])
    left, gone = (num_rows - compression - len(support)) * independent, len(support) * independent
    if left == 0:
        return 1.0
    # The squared norm of a Gaussian vector's part in a subspace, relative to the whole, has a Beta distribution.
    return math.comb(num_rows, len(support)) * float(special.betainc(left / 2, gone / 2, ratio**2))


def _without_rows(problem: LocatingProblem, known: Support, left: list[int]) -> LocatingProblem:
    """Return the problem that remains when some of the liars are known."""
    return replace(
        problem,
        generator=problem.generator[left],
        projected=problem.projected[left],
        points=problem.points[left],
        multipliers=problem.multipliers[left],
        max_errors=max(problem.max_errors - len(known), 0),
    )
