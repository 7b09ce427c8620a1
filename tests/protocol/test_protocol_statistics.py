"""Statistics over runs: against scipy and closed forms, then calibrated on simulated studies.

A bound on a simulated share allows for the studies being finitely many: it is the count that a true
5 % exceeds with probability 1e-3. Studies are 4,000, so that it is 6.1 % (of 1,000: 7.2 %).
"""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from errors import ConfigError, DataError
from protocol.statistics import hypothesis_tests
from protocol.statistics.power import (
    NoiseFloor,
    critical_difference,
    detectable_difference,
    detectable_difference_of_minima,
    estimate_noise_floor,
    power,
    runs_needed,
)
from protocol.statistics.ranks import compute_ranks
from protocol.statistics.sample import CandidateSample, make_sample
from protocol.statistics.sequential import check_looks, look_level
from protocol.statistics.verdict import MetricSpec, compare_candidates

STUDIES = 4000
MOST_FALSE = stats.binom.ppf(1 - 1e-3, STUDIES, 0.05) / STUDIES
SLACK = 3.1 * math.sqrt(0.05 * 0.95 / STUDIES)  # of a coverage, at the same 1e-3
SPREADS = {
    "equal": (1, 1, 1, 1),
    "noisy first": (5, 1, 1, 1),
    "noisy last": (1, 1, 1, 3),
    "two noisy": (1, 1, 10, 10),
    "lone equal": (1, 1),
    "lone 3": (1, 3),
    "lone 7": (1, 7),
    "eight, noisy first": (2, 1, 1, 1, 1, 1, 1, 1),
}


def studies(n, spreads, seed=0):
    """[STUDIES n] of each candidate, all with mean 0."""
    rng = np.random.default_rng(seed)
    return [s * rng.normal(size=(STUDIES, n)) for s in spreads]


def compared(groups, pairs):
    """Differences [STUDIES pairs] by the rule that verdicts follow."""
    together, (sigma, df) = hypothesis_tests.can_pool(groups), hypothesis_tests.pooled_sigma(groups)
    found = []
    for i, j in pairs:
        one = hypothesis_tests.welch(groups[i], groups[j])
        other = hypothesis_tests.pooled_difference(groups[i], groups[j], sigma, df)
        found.append([np.where(together, x, y) for x, y in zip(other[:4], one[:4], strict=True)])
    return hypothesis_tests.Difference(*np.moveaxis(np.array(found), (0, 1), (2, 0)))


@pytest.mark.parametrize("n", [3, 5, 8])
@pytest.mark.parametrize("spreads", SPREADS)
@pytest.mark.parametrize("design", ["all pairs", "against the first"])
def test_false_claims_and_coverage_of_simulated_studies(n, spreads, design):
    sigmas = SPREADS[spreads]
    k = len(sigmas)
    pairs = (
        list(itertools.combinations(range(k), 2))
        if design == "all pairs"
        else [(0, i) for i in range(1, k)]
    )
    found = compared(studies(n, sigmas), pairs)
    false = (hypothesis_tests.holm(found.p) <= 0.05).any(-1).mean()
    covered = (np.abs(found.mean) <= found.half_width()).mean(0)
    assert false <= MOST_FALSE
    assert covered.min() > 0.93 - SLACK
    assert covered.max() < 0.97 + SLACK


def test_pooling_where_brown_forsythe_is_silent_is_not_calibrated():
    """Why the rule is stricter: at 3 runs it never objects, and the families go wrong."""
    groups = studies(3, (1, 1, 1, 10))
    assert (hypothesis_tests.brown_forsythe(groups) > 0.05).mean() > 0.999
    sigma, df = hypothesis_tests.pooled_sigma(groups)
    pairs = itertools.combinations(groups, 2)
    p = np.stack([hypothesis_tests.pooled_difference(a, b, sigma, df).p for a, b in pairs], -1)
    assert (hypothesis_tests.holm(p) <= 0.05).any(-1).mean() > 0.1
    assert not hypothesis_tests.can_pool(groups).any()


def test_claims_of_a_lone_comparison_are_at_most_five_percent():
    """Precisely, by integrating the mean out: Welch's own p gives .059 at the worst ratio."""
    rng, n, worst = np.random.default_rng(1), 3, {}
    u, v = (rng.chisquare(n - 1, 100_000) / (n - 1) for _ in range(2))
    base = np.array([-1.0, 0.0, 1.0])  # of variance 1
    for ratio in (1, 3, 7, 15):
        a, b = np.sqrt(u)[:, None] * base, ratio * np.sqrt(v)[:, None] * base
        d = hypothesis_tests.welch(a, b)
        true = math.sqrt((1 + ratio**2) / n)
        for name, df in (("welch", d.df), ("claim", d.claim_df)):
            false = 2 * stats.norm.sf(stats.t.ppf(0.975, df) * d.standard_error / true)
            worst[name] = max(worst.get(name, 0), false.mean())
    assert worst["welch"] > 0.057
    assert worst["claim"] < 0.0515


@pytest.mark.parametrize("n", [3, 5, 8])
@pytest.mark.parametrize("spreads", ["equal", "noisy first", "lone 7"])
def test_false_ties_of_simulated_studies(n, spreads):
    """Candidates that lie apart by the margin are called equal in at most 5 % of families."""
    groups = studies(n, SPREADS[spreads], seed=1)
    groups[0] = groups[0] + 4.0
    found = compared(groups, [(0, i) for i in range(1, len(groups))])
    assert (hypothesis_tests.holm(found.equivalence_p(4.0)) <= 0.05).any(-1).mean() <= MOST_FALSE
    far = compared(groups, [(0, 1)]).equivalence_p(30.0)
    assert (far <= 0.05).mean() > (0.3 if n == 3 else 0.9)  # and ties are found


@pytest.mark.parametrize(("effect", "comparisons"), [(3.0, 1), (1.5, 3), (6.0, 6)])
def test_a_known_positive_is_found_at_the_n_of_the_power_line(effect, comparisons):
    n = runs_needed(effect, 1.0, comparisons)
    assert n == 3 or power(effect, 1.0, n - 1, comparisons) < 0.8
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(STUDIES, n)), rng.normal(effect, size=(STUDIES, n))
    hits = (hypothesis_tests.welch(a, b).p * comparisons <= 0.05).mean()
    noise = 3.1 * math.sqrt(0.2 * 0.8 / STUDIES)
    assert hits > 0.8 - noise
    assert abs(hits - power(effect, 1.0, n, comparisons)) < noise


def test_a_renamed_copy_is_never_ranked():
    rng, metric = np.random.default_rng(3), MetricSpec()
    for _ in range(1000):
        values = tuple(rng.normal(2.0, 0.01, 3))
        same = [CandidateSample("a", values), CandidateSample("copy", values)]
        other = [
            CandidateSample("a", values, 0, "d1"),
            CandidateSample("copy", (9.0, 9.1, 9.2), 0, "d1"),
        ]
        for samples in (same, other):
            verdicts = compare_candidates(samples, [("a", "copy")], metric)
            assert verdicts[0].winner() is None
            assert all(r.rank is None for r in compute_ranks(samples, verdicts).values())
    assert (
        verdicts[0].sentence == "a and copy have the same settings: their difference is noise, "
        "and they are not ranked against each other"
    )


@pytest.mark.parametrize(("ratio", "n", "comparisons"), [(1.0, 3, 3), (3.0, 3, 1), (2.0, 8, 6)])
def test_the_smallest_claimable_difference_is_found_in_half_of_studies(ratio, n, comparisons):
    effect = detectable_difference(0.01, ratio * 0.01, n, comparisons)
    rng = np.random.default_rng(4)
    a, b = rng.normal(effect, 0.01, (STUDIES, n)), rng.normal(0.0, ratio * 0.01, (STUDIES, n))
    claimed = hypothesis_tests.welch(a, b).p * comparisons <= 0.05
    assert claimed.mean() == pytest.approx(0.5, abs=0.025)  # three standard errors
    assert detectable_difference(0.01, ratio * 0.01, 1) == math.inf


def test_levels_of_holm_are_those_of_its_intervals():
    """By hand, at 5 %: .001 < .05 / 3 is rejected, .03 > .05 / 2 ends the procedure."""
    levels = hypothesis_tests.holm_levels(np.array([0.04, 0.001, 0.03]), 0.05)
    assert levels == pytest.approx([0.025, 0.05 / 3, 0.025])
    rng = np.random.default_rng(2)
    for _ in range(200):
        samples = [
            CandidateSample(x, tuple(rng.normal(i / 50, 0.01, 3))) for i, x in enumerate("abcd")
        ]
        pairs = list(itertools.combinations("abcd", 2))
        for v in compare_candidates(samples, pairs, MetricSpec()):
            assert (abs(v.difference.mean) > v.half_width) == (v.winner() is not None)


def test_levels_of_looks_are_pococks():
    """Pocock (Biometrika 64, 1977), table 1: nominal levels of 2, 3 and 5 looks at 5 %."""
    table = {(1, 2): 0.0294, (1, 2, 3): 0.0221, (1, 2, 3, 4, 5): 0.0158}
    for looks, level in table.items():
        assert look_level(looks) == pytest.approx(level, abs=1e-4)
    assert (
        look_level((3, 5, 8), 0.05, 6) < look_level((3, 5, 8)) < 0.05
        and look_level((), 0.05) == 0.05
    )
    for looks in ((2, 5), (5, 3, 8), (3, 5)):
        with pytest.raises(ConfigError, match="must be increasing numbers of seeds"):
            check_looks(looks, 8)


def test_a_paired_test_is_scipys():
    a, b = np.array([2.3, 2.5, 2.2]), np.array([2.28, 2.47, 2.21])
    paired = hypothesis_tests.paired_difference(a, b)
    reference = stats.ttest_rel(a, b)
    assert paired.p == pytest.approx(reference.pvalue) and paired.df == 2
    low, high = reference.confidence_interval()
    assert paired.half_width() == pytest.approx((high - low) / 2)
    one = [CandidateSample(x, tuple(v), seeds=(0, 1, 2)) for x, v in (("a", a), ("b", b))]
    other = [one[0], CandidateSample("b", tuple(b[::-1]), seeds=(2, 1, 0))]
    for samples in (one, other):
        (v,) = compare_candidates(samples, [("a", "b")], MetricSpec(), is_paired=True)
        assert v.p == pytest.approx(reference.pvalue)
    with pytest.raises(ConfigError, match="must be the same for a paired comparison"):
        compare_candidates(
            [one[0], CandidateSample("b", tuple(b))], [("a", "b")], MetricSpec(), is_paired=True
        )


def test_no_rank_contradicts_a_verdict_in_simulated_studies():
    """Six candidates, all pairs: a truly worse one is strictly ahead in at most 5 %."""
    rng, means = np.random.default_rng(7), np.array([0.0, 0.0, 0.02, 0.02, 0.05, -0.05])
    names = "abcdef"
    truth, ahead = dict(zip(names, means, strict=True)), 0
    for _ in range(300):
        values = rng.normal(means[:, None], 0.01, (6, 3))
        samples = [CandidateSample(x, tuple(v)) for x, v in zip(names, values, strict=True)]
        verdicts = compare_candidates(samples, list(itertools.combinations(names, 2)), MetricSpec())
        ranks = compute_ranks(samples, verdicts)
        for better, worse in filter(None, (v.defeat() for v in verdicts)):
            assert ranks[better].low < ranks[worse].low and ranks[better].high < ranks[worse].high
        ahead += any(
            ranks[x].high < ranks[y].low and truth[x] > truth[y]
            for x, y in itertools.permutations(names, 2)
        )
        assert not compute_ranks(samples, verdicts[:-1])  # one pair fewer decides no order
    assert ahead <= 0.05 * 300


# Independent references.

A, B, C = [2.31, 2.35, 2.30, 2.42], [2.48, 2.41, 2.55], [2.2, 2.9, 2.1, 2.6, 2.4]


def test_welch_is_scipys():
    found = hypothesis_tests.welch(np.array(A), np.array(B))
    theirs = stats.ttest_ind(A, B, equal_var=False)
    assert found.df == pytest.approx(theirs.df, rel=1e-12)
    assert found.mean / found.standard_error == pytest.approx(theirs.statistic, rel=1e-12)
    low, high = theirs.confidence_interval(0.9)
    assert (
        found.mean - found.half_width(0.9),
        found.mean + found.half_width(0.9),
    ) == pytest.approx((low, high))
    assert found.p >= theirs.pvalue
    assert 2 <= found.claim_df <= found.df <= 5


def test_equal_spreads_leave_claims_to_welch():
    a = np.array([1.0, 2.0, 3.0])
    found = hypothesis_tests.welch(a, a + 5)
    assert found.claim_df == found.df == 4
    assert found.p == pytest.approx(stats.ttest_ind(a, a + 5).pvalue)
    assert found.equivalence_p(9.0) == pytest.approx(stats.t.sf((9 - 5) / found.standard_error, 4))


def test_pooled_is_scipys():
    arrays = [np.array(x) for x in (A, B)]
    found = hypothesis_tests.pooled_difference(*arrays, *hypothesis_tests.pooled_sigma(arrays))
    theirs = stats.ttest_ind(A, B)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-12)
    assert found.df == theirs.df


def test_brown_forsythe_of_runs_at_their_median_is_one():
    """scipy's p-value is not a number there."""
    found = hypothesis_tests.brown_forsythe([np.array(x) for x in (A, B, C)])
    assert found == pytest.approx(stats.levene(A, B, C, center="median").pvalue, rel=1e-12)
    assert hypothesis_tests.brown_forsythe([np.ones(3), np.full(4, 2.0)]) == 1


def test_holm_by_hand_and_in_studies():
    np.testing.assert_allclose(
        hypothesis_tests.holm(np.array([[0.01, 0.04, 0.03], [0.5, 0.6, 0.0]])),
        [[0.03, 0.06, 0.06], [1.0, 1.0, 0.0]],
    )


def test_intervals_of_means_and_rates():
    low, high = stats.ttest_1samp(A, 0).confidence_interval(0.95)
    assert hypothesis_tests.mean_interval(A) == pytest.approx((low, high))
    half = hypothesis_tests.mean_interval((-1.0, 0.0, 1.0)).high * math.sqrt(3)
    assert half == pytest.approx(4.303, abs=5e-4)  # t(.975, 2), of any table; "2.5 sigma" of 3 runs
    assert hypothesis_tests.mean_interval([2.3]) is None
    low, high = hypothesis_tests.rate_interval(1, 3)  # Clopper & Pearson by beta quantiles
    assert (low, high) == pytest.approx((stats.beta.ppf(0.025, 1, 3), stats.beta.ppf(0.975, 2, 2)))
    assert hypothesis_tests.rate_interval(0, 3) == (0, pytest.approx(1 - 0.025 ** (1 / 3)))


def test_smallest_claim_is_the_formula_of_the_protocol():
    # t(.975, 4) = 2.776 and t(1 - .05 / 12, 4) = 4.851 by tables
    assert critical_difference(0.01, 3) == pytest.approx(2.776 * 0.01 * math.sqrt(2 / 3), rel=2e-4)
    assert critical_difference(0.01, 3, 6) == pytest.approx(
        stats.t.ppf(1 - 0.05 / 12, 4) * 0.01 * math.sqrt(2 / 3)
    )
    assert critical_difference(0.01, 1) == math.inf
    assert 0.45 < power(critical_difference(1.0, 8), 1.0, 8) < 0.55


@pytest.mark.parametrize(("sizes", "runs"), [(6, 3), (12, 1)])
def test_half_of_simulated_studies_claim_the_detectable_difference_of_minima(sizes, runs):
    """Two parabolas each, whose scatter about the curve is all that a study knows of its noise."""
    rng, sigma = np.random.default_rng(sizes), 0.01
    difference = detectable_difference_of_minima(sigma, runs, 3, n_sizes=sizes)
    x = np.linspace(-1, 1, sizes)
    design = np.stack([np.ones_like(x), x, x**2], -1)
    noise = sigma / math.sqrt(runs) * rng.normal(size=(2, STUDIES, sizes))
    losses = 2 * x**2 + noise + np.array([0, difference])[:, None, None]
    a, b, c = np.moveaxis(losses @ np.linalg.pinv(design).T, -1, 0)
    best = -b / (2 * c)
    basis = np.stack([np.ones_like(best), best, best**2], -1)
    scatter = ((losses - np.stack([a, b, c], -1) @ design.T) ** 2).sum(-1) / (sizes - 3)
    inverse = np.linalg.inv(design.T @ design)
    u, v = scatter * np.einsum("msi,ij,msj->ms", basis, inverse, basis)
    low, high = sizes - 3, 2 * (sizes - 3)
    df = (u + v) ** 2 / (u**2 + v**2) * low
    df = low + (high - low) * ((df - low) / (high - low)) ** 2  # That of the board's claims.
    left, right = a + b * best / 2
    claimed = np.abs(left - right) / np.sqrt(u + v) > stats.t.ppf(1 - 0.05 / 6, df)
    assert claimed.mean() == pytest.approx(0.5, abs=0.04)


def test_a_noise_floor_is_measured():
    floor = estimate_noise_floor((1.0, 2.0) * 4, "results/floor.json")
    assert floor.sigma == pytest.approx(math.sqrt(8 * 0.25 / 7))
    assert floor.upper_bound(0.9) == pytest.approx(
        floor.sigma * math.sqrt(7 / stats.chi2.ppf(0.1, 7))
    )
    assert NoiseFloor(1.0, 80).upper_bound() < 1.1
    with pytest.raises(DataError, match="of 5 runs; give 8"):
        estimate_noise_floor((1.0, 2.0, 3.0, 4.0, 5.0))
    with pytest.raises(DataError, match="noise floor of 0"):
        estimate_noise_floor((1.1,) * 8)
    with pytest.raises(ConfigError, match="more than 1000 runs; choose a difference of 0.1"):
        runs_needed(0.001, 1.0)


# Verdicts.

GOOD, BAD = CandidateSample("A", (1.00, 1.01, 1.02)), CandidateSample("B", (1.05, 1.04, 1.06))
NEAR = CandidateSample("C", (1.02, 1.00, 1.03))


PLAIN = MetricSpec(margin=0.002)


def one(a, b, metric=PLAIN):
    return compare_candidates([a, b], [(a.name, b.name)], metric)[0]


def test_sentences():
    found = one(GOOD, BAD)
    half = stats.t.ppf(0.975, 4) * 0.01 * math.sqrt(2 / 3)
    p = stats.ttest_ind(GOOD.values, BAD.values).pvalue
    assert (f"{half:.3f}", f"{p:.4f}") == ("0.023", "0.0080")
    assert found.sentence == (
        "A has lower bits per byte than B, by 0.040 +- 0.023 at this N and D (95 %, n=3, Welch), "
        "Holm p=0.0080"
    )
    # The spreads give Welch 3.45 degrees of freedom and claims 2 + 2 (1.45 / 2)^2 = 3.05.
    assert f"{stats.t.ppf(0.975, 3.0486) * math.sqrt(1e-3 / 9):.3f}" == "0.033"
    assert one(GOOD, NEAR).sentence == (
        "A and C are not distinguishable at n=3 at this N and D: the difference is -0.007 +- 0.033 "
        "bits per byte (95 %, n=3, Welch), Holm p=0.57; the smallest claimable difference is 0.033"
    )
    assert one(GOOD, NEAR, MetricSpec(margin=0.1)).sentence.startswith(
        "A and C are equivalent within 0.10 bits per byte at this N and D: the difference is -0.007"
    )
    assert one(CandidateSample("A", (1.0,)), CandidateSample("B", (1.5,))).sentence == (
        "A and B are not ranked at n=1: they differ by -0.50 bits per byte at this N and D, and "
        "one run has no interval"
    )
    two = one(CandidateSample("A", (1.0, 1.1)), CandidateSample("B", (3.0, 3.1)))
    assert two.kind == "too_few_runs" and "n=2, because a rank needs 3 runs of each" in two.sentence


def test_a_diverged_run_stays_in_n():
    broken = make_sample("M", [1.0, math.nan, 1.1])
    assert (broken.n_runs, broken.n_diverged, broken.mean, broken.interval) == (3, 1, None, None)
    found = one(broken, BAD)
    assert found.kind == "diverged" and found.winner() is None
    assert found.sentence == (
        "M diverged in 1 of 3 runs (95 %: 0.01 to 0.91) at this N and D; a candidate with a "
        "diverged run has a rate instead of a mean and is not ranked"
    )
    assert compute_ranks([broken, BAD], [found]) == {}
    with pytest.raises(DataError, match="must be finite"):
        CandidateSample("M", (math.inf,))


def test_all_declared_comparisons_count():
    """A diverged comparison stays in the family, and its p of 1 is the last to be judged."""
    broken = make_sample("M", [1.0, math.inf, 1.1])
    alone = one(GOOD, BAD).p
    family = compare_candidates(
        [GOOD, BAD, broken], [("A", "B"), ("M", "A"), ("B", "M")], MetricSpec()
    )
    assert family[0].p == pytest.approx(3 * alone)
    assert family[0].critical_difference == pytest.approx(critical_difference(0.01, 3, 3))
    beside = compare_candidates([GOOD, BAD], [("A", "B")], MetricSpec(), n_other_comparisons=4)[0]
    assert beside.p == pytest.approx(5 * alone)
    assert beside.critical_difference == pytest.approx(critical_difference(0.01, 3, 5))


def test_ranks_know_ties():
    samples = [GOOD, BAD, NEAR, CandidateSample("D", (0.5, 0.51))]
    pairs = list(itertools.combinations("ABC", 2))
    verdicts = compare_candidates(samples, pairs, MetricSpec())
    assert {v.kind for v in verdicts} == {"inconclusive", "lower", "higher"} - {"higher"}
    # A beats B, and nothing else is shown: C may be anywhere.
    assert compute_ranks(samples, verdicts) == {"A": (1, 2), "B": (2, 3), "C": (1, 3)}
    scores = MetricSpec("accuracy", better="higher")
    assert compute_ranks(samples, compare_candidates(samples, pairs, scores))["B"] == (1, 2)


def test_a_difference_within_the_margin_is_a_tie():
    found = one(GOOD, BAD, MetricSpec(margin=0.1))
    assert found.kind == "equivalent" and found.p < 0.05


def test_runs_without_spread_support_nothing():
    """The same run counted three times is no replication."""
    found = one(CandidateSample("A", (1.0,) * 3), CandidateSample("B", (1.5,) * 3))
    assert found.kind == "no_variance" and found.p == 1 and math.isinf(found.critical_difference)
    assert "no interval exists; their means differ by 0.50 bits per byte" in found.sentence


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("A", "X")], "names 'X'"),
        ([("A", "B"), ("B", "A")], "each once"),
        ([("A", "A")], "of two candidates"),
        ([], "no comparison"),
    ],
)
def test_comparisons_are_of_known_pairs(pairs, message):
    with pytest.raises(ConfigError, match=message):
        compare_candidates([GOOD, BAD], pairs, MetricSpec())
    with pytest.raises(ConfigError, match="share a name"):
        compare_candidates([GOOD, GOOD], [("A", "B")], MetricSpec())


def test_eight_runs_with_like_spreads_are_pooled():
    rng = np.random.default_rng(0)
    samples = [CandidateSample(name, tuple(rng.normal(size=8))) for name in "ABC"]
    found = compare_candidates(samples, [("A", "B")], MetricSpec())[0]
    values = [s.values for s in samples]
    assert stats.levene(*values, center="median").pvalue > 0.5
    assert found.difference.df == 21 and "pooled" in found.sentence
    wild = [*samples[:2], CandidateSample("C", tuple(20 * rng.normal(size=8)))]
    assert compare_candidates(wild, [("A", "B")], MetricSpec())[0].difference.method == "Welch"
