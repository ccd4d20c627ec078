import os

# SciPy solves a small system for each triangle of the peer's warp to landmarks. OpenBLAS's threads only wait for each
# other there, twenty times as long on a busy machine. Read when NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
