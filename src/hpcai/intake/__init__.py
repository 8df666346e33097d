"""Own data, taken in by `hpcai new`.

listing (table.py, columns.py) + images (files.py) -> join.py -> look.py, alike.py -> summary.py -> write.py, page.py, tell.py
"""
