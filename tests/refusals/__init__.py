"""Tables of what users get wrong; `tests/unit/test_refusals.py` runs every row.

A row says what is done and a part of the one line that must be told.
"""
