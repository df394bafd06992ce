"""Run every benchmark: `python -m benchmarks`."""

from benchmarks import data_plane, pair_forward

if __name__ == "__main__":
    pair_forward.main()
    data_plane.main()
