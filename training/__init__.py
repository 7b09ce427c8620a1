"""How a run is trained: settings, step, loop, mesh, optimizer, checkpoints, run folder, log."""
