"""Arrays in, numbers out: means with one interval, families of tests, ranks, bets, and how numbers are written."""
