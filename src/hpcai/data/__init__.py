"""From files to cases to splits to samples.

open.open_cases -> Cases (npz.py, images.py, csv through listing.py) -> splits.make_splits -> augment.augment
"""
