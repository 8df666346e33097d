"""Newborn screening by tandem mass spectrometry.   table -> checks -> features -> model, rules -> one decision a baby

Shape letters: n newborns (rows), A analytes, C channels (analytes, then ratios), D diseases, R rules.
"""
