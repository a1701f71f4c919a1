"""Tables of what users get wrong: a row for each rule, and one for each place where a rule is asked.

`tests/unit/test_refusals.py` runs every row, which says what is done and a part of the one line that must be told.
"""
