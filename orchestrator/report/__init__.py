"""Pictures and pages of sweeps, built from their output directories alone.

Read `series.py` (what is drawn), `figures.py` (the pictures), `page.py` (the report), `compare.py` (several sweeps).
"""
