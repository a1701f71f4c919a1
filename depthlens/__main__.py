"""`python -m depthlens`: the command line."""

from depthlens.cli import main

main()
