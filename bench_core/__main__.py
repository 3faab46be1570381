"""``python -m bench_core`` is ``exitbench``."""

from bench_core.cli import main

if __name__ == "__main__":
    main()
