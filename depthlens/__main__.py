"""`python -m depthlens`: the command line."""

from depthlens.cli import main

if __name__ == "__main__":
    main()
