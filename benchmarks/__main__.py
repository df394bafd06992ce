"""Run every benchmark at a size that a CPU can take: `python -m benchmarks` (about twenty-five minutes on two cores).

Each module says how to run it alone, and on a GPU.
"""

from importlib.util import find_spec

from benchmarks import (
    attention,
    curation,
    data_plane,
    equivalence,
    pair_forward,
    reading,
    report,
    scoring_rate,
    serving,
    step_memory,
    sweep_overhead,
    vs_trl,
)

if __name__ == "__main__":
    pair_forward.main([])
    step_memory.main(["--shape", "mini", "--visual", "0", "1176"])
    attention.main(["--prefix", "1000"])
    scoring_rate.main([])
    serving.main(["--queries", "24", "--rounds", "1"])
    data_plane.main()
    reading.main([])
    equivalence.main()
    curation.main([])
    report.main([])
    sweep_overhead.main(["--small"])
    if find_spec("trl") is None:
        print("vs_trl is left out: pip install -e '.[bench]'")
    else:
        vs_trl.main([])
