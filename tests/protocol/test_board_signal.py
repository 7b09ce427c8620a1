"""Signal to noise of scores, decision accuracy over sizes, and places by tokens a parameter."""

import itertools
import json
import math

import board_runs
import numpy as np
import pytest
from scipy import stats

from errors import DataError
from protocol.board import export, sentences
from protocol.board.board import make_board
from protocol.records.load import load_records
from protocol.statistics.decision import decision_accuracies, size_scores
from protocol.statistics.hypothesis_tests import welch
from protocol.statistics.signal import expected_range, signal_to_noise, trend_residuals


def test_the_ratio_is_the_range_of_means_over_the_scatter_of_seeds():
    """By hand: means 2 and 6, each candidate with variance 2."""
    result = signal_to_noise([[1.0, 3.0], [5.0, 7.0]])
    assert result.ratio == pytest.approx(4 / math.sqrt(2))
    assert result.signal == pytest.approx(1.0)
    assert result.noise == pytest.approx(math.sqrt(2) / 4)
    assert (result.df, result.n_candidates) == (2, 2)
    rng = np.random.default_rng(0)
    uneven = [rng.normal(size=n) for n in (3, 5, 4)]
    assert signal_to_noise(uneven).p == pytest.approx(stats.f_oneway(*uneven).pvalue)


def test_the_expected_range_is_that_of_control_charts():
    """The constants d2 of Tippett's tables for 2, 3, 5 and 10 numbers."""
    for count, constant in ((2, 1.128), (3, 1.693), (5, 2.326), (10, 3.078)):
        assert expected_range(count) == pytest.approx(constant, abs=5e-4)


def test_candidates_that_do_not_differ_have_the_ratio_that_is_stated():
    rng = np.random.default_rng(1)
    results = [signal_to_noise(values) for values in rng.normal(2.0, 0.01, (3000, 4, 3))]
    ratios = np.array([r.ratio for r in results])
    error = ratios.std() / math.sqrt(len(ratios))
    assert abs(ratios.mean() - results[0].null_ratio) < 4 * error
    assert 0.038 < np.mean([r.p < 0.05 for r in results]) < 0.062


def test_a_signal_needs_two_candidates_and_a_noise_two_runs():
    for values, message in (
        ([[1.0, 2.0]], "1 candidates of at most 2 runs"),
        ([[1.0], [2.0]], "2 candidates of at most 1 runs"),
        ([[1.0, 1.0], [2.0, 2.0]], "there is no noise"),
    ):
        with pytest.raises(DataError, match=message):
            signal_to_noise(values)


def test_late_scores_scatter_about_a_line():
    steps, rng = np.array([80.0, 85.0, 95.0, 100.0]), np.random.default_rng(2)
    assert np.abs(trend_residuals(steps, 3 - 0.01 * steps)).max() < 1e-12
    scores = rng.normal(size=4)
    line = stats.linregress(steps, scores)
    expected = scores - line.intercept - line.slope * steps
    assert trend_residuals(steps, scores) == pytest.approx(expected)


def test_pairs_decide_where_welch_finds_a_difference():
    """By hand: of three pairs, one changes its order from one size to the next."""
    small, large = [[1.0, 1.1], [2.0, 2.1], [3.0, 3.1]], [[1.0, 1.1], [3.0, 3.1], [2.0, 2.1]]
    noisy = [[x - 2, x + 2] for x, _ in large]
    (first,) = decision_accuracies([size_scores(small), size_scores(noisy)])
    assert (first.n_pairs, first.n_same, first.n_decided) == (3, 2, 0)
    assert first.interval == (0.0, 1.0)
    rng = np.random.default_rng(3)
    tables = [[rng.normal(x[0], 0.02, 4) for x in size] for size in (small, large)]
    (sure,) = decision_accuracies([size_scores(table) for table in tables])
    assert (sure.n_same, sure.n_decided_same, sure.n_decided_opposite) == (2, 2, 1)
    assert sure.interval == (2 / 3, 2 / 3) and sure.accuracy == 2 / 3
    pairs = itertools.combinations(range(3), 2)
    p = [[float(welch(table[i], table[j]).p) for i, j in pairs] for table in tables[:1]]
    assert max(p[0]) < 0.05 / 6
    (single,) = decision_accuracies([size_scores([[1.0], [2.0]]), size_scores([[1.0], [3.0]])])
    assert single.accuracy == 1 and single.interval == (0.0, 1.0)


def test_noise_alone_keeps_half_of_the_pairs():
    rng = np.random.default_rng(4)
    draws = rng.normal(size=(800, 2, 4, 3))
    found = [decision_accuracies([size_scores(x) for x in draw])[0] for draw in draws]
    accuracy = np.array([a.accuracy for a in found])
    assert abs(accuracy.mean() - 0.5) < 4 * accuracy.std() / math.sqrt(len(found))
    assert np.mean([a.n_decided > 0 for a in found]) < 0.05


def test_the_interval_holds_the_true_share_in_most_studies():
    """Of four candidates, the order of one pair of six is not the same at both sizes."""
    rng = np.random.default_rng(5)
    means = np.array([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 3.0, 2.0]])
    draws = means[None, :, :, None] + 0.3 * rng.normal(size=(600, 2, 4, 4))
    found = [decision_accuracies([size_scores(x) for x in draw])[0] for draw in draws]
    covered = np.mean([a.interval.low <= 5 / 6 <= a.interval.high for a in found])
    assert covered >= 0.95
    assert np.mean([a.n_decided for a in found]) > 2  # The interval is not that of ignorance.


VALUES = {  # By size: the runs of each candidate; a and b change places.
    "small": {"a": (2.00, 2.02, 2.01), "b": (2.10, 2.12, 2.11), "c": (2.50, 2.53, 2.51)},
    "large": {"a": (1.92, 1.94, 1.93), "b": (1.82, 1.84, 1.83), "c": (2.30, 2.33, 2.31)},
}
PAIRS = [["a", "b"], ["a", "c"], ["b", "c"]]


def write_sizes(root, sizes=("small", "large"), seeds=3):
    """Two sizes of three candidates; each run has a probe, and logs its last evaluations."""
    rng = np.random.default_rng(6)
    for number, size in enumerate(sizes):
        params, steps = 250_000 * 4**number, 100
        for place, (name, values) in enumerate(VALUES[size].items()):
            for seed, value in enumerate(values[:seeds]):
                accuracy = 0.4 + 0.1 * place + 0.02 * float(rng.normal())
                folder = board_runs.run(
                    *(root / f"{name}-{size}-{seed}", name, seed, value),
                    scores=[("probe/genre/accuracy", accuracy), ("probe/genre/layer", place)],
                    rows=20,
                    flops=6.0 * params,
                    params=params,
                    non_embedding_params=params // 2,
                    model={"width": 128 * 2**number + place},
                    study={"value": 6.0 * params * steps * 256, "comparisons": PAIRS}
                    | {"n_comparisons": 6},
                )
                log = folder / "metrics.jsonl"
                rows = [json.loads(line) for line in log.read_text().splitlines()]
                for row in rows:  # All but the last fifth are ignored.
                    row["valid/bits_per_byte"] = value + 0.01 * float(rng.normal())
                rows[-1]["valid/bits_per_byte"] = value
                log.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_board_states_signal_noise_and_decision_accuracy(tmp_path):
    write_sizes(tmp_path)
    board = make_board(*load_records([tmp_path]))
    (comparable_set,) = board.comparable_sets
    tree = export.to_json_tree(board)["comparable_sets"][0]
    for group, values in zip(tree["groups"], VALUES.values(), strict=True):
        signal, probe = group["signals"]
        means = [np.mean(v) for v in values.values()]
        sigma = math.sqrt(np.mean([np.var(v, ddof=1) for v in values.values()]))
        assert signal["score"] == "test/bits_per_byte"
        assert signal["ratio"] == pytest.approx((max(means) - min(means)) / sigma)
        assert signal["noise"] == pytest.approx(sigma / np.mean(means))
        assert signal["p"] == pytest.approx(stats.f_oneway(*values.values()).pvalue)
        assert probe["score"] == "probe/genre/accuracy" and probe["late_noise"] is None
        assert 0.003 < signal["late_noise"] * np.mean(means) < 0.02  # 0.01 was added.
    across = tree["across_sizes"]
    metric, probe = across["decision_accuracy"]
    assert (metric["score"], metric["n_same"], metric["n_pairs"]) == ("test/bits_per_byte", 2, 3)
    assert metric["interval"] == pytest.approx([2 / 3, 2 / 3])  # Both sizes decide all pairs.
    assert probe["score"] == "probe/genre/accuracy" and probe["accuracy"] == 1
    small, large = across["places_by_tokens_per_param"]
    assert small["ratio"] == pytest.approx(25_600 / 125_000)
    assert small["candidates"] == ("a", "b", "c") and large["candidates"] == ("b", "a", "c")
    assert small["places"] == ("1", "2", "3")
    head = sentences.summarize_group(comparable_set.groups[0], comparable_set)
    ratio = tree["groups"][0]["signals"][0]["ratio"]
    said = f"The signal to noise ratio of bits per byte on test is {ratio:.3g}: "
    assert any(text.startswith(said) for text in head.confidence)
    late = 100 * tree["groups"][0]["signals"][0]["late_noise"]
    assert f"The last evaluations of a run scatter by {late:.2g} % about their trend, on the " in (
        " ".join(head.confidence)
    )
    assert any(text.startswith("The further score probe/genre/acc") for text in head.confidence)
    text = "The order by bits per byte on test is the same at 3.84e10 training FLOPs and at 1.54e11"
    page, document = export.to_html(board), export.to_markdown(board)
    assert text in page and text in document and "Across sizes and budgets" in document
    assert "at 0.0512 (1.54e11 training FLOPs) b (1), a (2), c (3); at 0.205 " in page
    assert "Signal and noise of 2 scores" in page and "| probe/genre/accuracy |" in document
    json.dumps(tree, allow_nan=False)


def test_the_last_evaluations_are_those_of_the_last_fifth(tmp_path):
    write_sizes(tmp_path, ("small",), seeds=1)
    # A score of a part of the split is logged with the label of the part, which is no number.
    label = {"step": 100, "valid/part": "128 of 16,785 windows of 32, sha256 d6"}
    for path in tmp_path.rglob("metrics.jsonl"):
        path.write_text(path.read_text() + json.dumps(label) + "\n")
    records, unreadable = load_records([tmp_path])
    assert records and not unreadable
    for record in records:
        points = record.late_scores["valid/bits_per_byte"]
        assert [step for step, _ in points] == [80.0, 85.0, 90.0, 95.0, 100.0]


def test_copies_and_scores_of_two_versions_are_left_out(tmp_path):
    for place, (name, width) in enumerate((("a", 128), ("b", 130), ("copy", 128))):
        for seed, value in enumerate((2.00, 2.02, 2.01)):
            own = value + 0.1 * place
            folder = board_runs.run(
                tmp_path / f"{name}-{seed}", name, seed, own, model={"width": width}
            )
            score = {"name": "probe/genre/accuracy", "value": 0.5 + 0.01 * seed, "weight": 1}
            task = {"task": "probe", "version": 1 + (name == "b"), "step": 100, "length": 64}
            record = task | {"data": board_runs.DATA, "scores": [score]}
            board_runs.write(folder / "eval/100/probe.json", record)
    (comparable_set,) = make_board(*load_records([tmp_path])).comparable_sets
    metric, probe = comparable_set.groups[0].signals
    assert metric.result.n_candidates == 2
    assert metric.result.dispersion == pytest.approx(0.1)
    assert probe.result is None and probe.problem.startswith("several versions of its task")


def test_one_size_or_one_seed_says_in_one_line_what_is_missing(tmp_path):
    write_sizes(tmp_path, ("small",), seeds=1)
    board = make_board(*load_records([tmp_path]))
    (comparable_set,) = board.comparable_sets
    assert comparable_set.across is None
    assert "Across sizes" not in export.to_html(board) + export.to_markdown(board)
    text = " ".join(sentences.summarize_group(comparable_set.groups[0], comparable_set).confidence)
    assert "has no signal to noise ratio: 3 candidates of at most 1 runs" in text
