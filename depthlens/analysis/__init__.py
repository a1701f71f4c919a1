"""Numbers from results: statistics, profiles over depth, comparisons. Nothing here imports torch."""
