"""``python -m torchtrt_bridge``: the command ``torchtrt-bridge``."""

from .cli import main

if __name__ == "__main__":
    main()
