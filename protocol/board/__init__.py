"""The leaderboard: which runs are compared with which, and the page that reports the comparison.

The vocabulary, from the smallest part to the largest:

- A *study* (`protocol/records/study_record.py`) declares, before any run, what is matched, which
  candidates are compared and by which metric. It is optional: without it, results are exploratory.
- A *record* (`RunRecord`) is one training run, read from its run folder or an external result.
- A *candidate* is what a study calls a model under comparison. All runs of it differ only in their
  seed, unless the study has it at several sizes.
- A *row* (`BoardRow`) is the set of records that differ only in their seed. A candidate with
  several sizes has several rows. A row may be *excluded*: it is shown, and compared with nothing.
- A *sample* (`CandidateSample`) is what a row contributes to the statistics: the scores of its
  finished runs, and the number of runs that diverged.
- A *group* (`Group`) is the set of rows whose matched cost agrees within 1 %. Rows are ranked only
  inside a group, by the verdicts of its comparisons.
- A *comparable set* (`ComparableSet`) is the set of groups whose runs agree in all comparability
  keys: objective, data, metric and so on (`protocol/records/comparability.py`).

`board.py` builds the board from records, `export.py` and `html.py` write it, `verify.py` compares
a published board with run folders.
"""
