"""From settings to artefacts: the order of stages, their fingerprints, the store, processes, sweeps over all of it."""
