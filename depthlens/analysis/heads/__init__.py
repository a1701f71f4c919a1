"""What a sweep says about heads: scores, effects, curves, lists, and agreement of rankings."""
