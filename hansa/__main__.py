"""`python -m hansa` is the same as `hansa`."""

from hansa.cli import main

if __name__ == "__main__":
    main()
