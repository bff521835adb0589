# Everything a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
CELLS := vae kl_annealing $(if $(wildcard configs/method/free_bits.yaml),free_bits)

# PTB: a folder of its train.txt, valid.txt and test.txt, where the hub is out of reach.
REFERENCE := threads=1 results_dir=results/reference cluster=local \
    cluster.parallel=$$(getconf _NPROCESSORS_ONLN)
GENERATED := grids=leaderboard/reference/generated.txt
TEXT := grids=leaderboard/reference/text.txt $(if $(PTB),dataset.path=$(PTB))

.PHONY: install demo test soak lint speed growth figures guide reference published screenshots
install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## collapse and a remedy for it on the embedded data, two cells at a time
	$(BIN)/python -m benchmark.data dataset=synthetic
	printf '%s\n' $(CELLS) | xargs -P 2 -I{} $(BIN)/python -m benchmark.run method={} threads=1
	$(BIN)/python -m leaderboard results

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 -m 'not soak'

soak: $(READY)  ## long trials
	$(BIN)/python -m pytest -q -m soak

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

speed: $(READY)  ## against the field's reference code, on this machine: a quarter of an hour
	$(BIN)/python -m tests.speed

growth: $(READY)  ## of time and memory with what is put in
	$(BIN)/python -m tests.growth

figures: $(READY)  ## the picture in README.md, from runs of its own
	$(BIN)/python -m benchmark.data dataset=synthetic
	printf 'method=%s\n' vae kl_annealing | xargs -P 2 -I{} $(BIN)/python -m benchmark.run -m {} \
	    seed=0,1,2 threads=1 budget.evaluation.every=50 results_dir=results/figures
	$(BIN)/python -m leaderboard.figures results/figures docs --dataset synthetic \
	    --methods vae kl_annealing --labels "plain VAE" "KL annealing" --mark 1000 "KL at full weight"

guide: $(READY)  ## the picture in benchmark/diagnosis/README.md: three ways to die, in a few minutes
	$(BIN)/python -m benchmark.data dataset=synthetic
	printf '%s\n' method=vae 'method=free_bits method.floor=0.03' \
	    'method=kl_annealing stop_after=0.1' | \
	    xargs -P 2 -I{} sh -c '$(BIN)/python -m benchmark.run {} threads=1 results_dir=results/guide'
	printf '%s\n' results/guide/synthetic/*/*/s0 | xargs -n 1 $(BIN)/python -m benchmark.diagnose
	$(BIN)/python -m benchmark.diagnosis.together docs/died.svg results/guide/synthetic/*/*/s0

reference: $(READY)  ## the published leaderboard; stop it with Ctrl-C, the same command goes on
	$(BIN)/python -c "from leaderboard.public import restore; \
	    restore('leaderboard/reference/runs', 'results/reference')"
	$(BIN)/python -m slurm.submit $(GENERATED) $(REFERENCE) --dry-run
	$(BIN)/python -m slurm.submit $(TEXT) $(REFERENCE) --dry-run
	@# 1: a cell has failed, which the page is to show, or text is not at hand, and none of it runs
	trap '$(BIN)/python -m slurm.pool --stop results/reference' INT TERM; \
	    for grids in "$(GENERATED)" "$(TEXT)"; do \
	        $(BIN)/python -m slurm.submit $$grids $(REFERENCE) --wait || test $$? -eq 1 || exit; \
	    done
	$(MAKE) published

published: $(READY)  ## lay what `make reference` has measured so far into leaderboard/reference
	$(BIN)/python -m leaderboard results/reference --public --out leaderboard/reference

screenshots: $(READY)  ## the reference page as a browser shows it: light, dark and on a phone
	$(BIN)/python -m tests.chromium leaderboard/reference/index.html results/screenshots
