"""`python -m sslim` is `sslim`."""

from sslim.cli import main

if __name__ == "__main__":
    main()
