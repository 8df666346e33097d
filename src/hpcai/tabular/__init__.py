"""Classification of a table's cases without a network (job=fit): features -> estimator -> calibrated probabilities and sets.

features.py (numbers -> channels), model.py (one fitted model, as JSON), choose.py (the grid, inside the training cases), fit.py
and apply.py (the jobs), judged.py (what the judged cases say).
"""
