"""Run every benchmark: `python -m benchmarks`."""

from benchmarks import data_plane, pair_forward, scoring_rate

if __name__ == "__main__":
    pair_forward.main()
    scoring_rate.main()
    data_plane.main()
