# Everything a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
CELLS := vae kl_annealing $(if $(wildcard configs/method/free_bits.yaml),free_bits)

.PHONY: install demo test soak lint figures
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

figures: $(READY)  ## the picture in README.md, from runs of its own
	$(BIN)/python -m benchmark.data dataset=synthetic
	printf 'method=%s\n' vae kl_annealing | xargs -P 2 -I{} $(BIN)/python -m benchmark.run -m {} \
	    seed=0,1,2 threads=1 budget.evaluation.every=50 results_dir=results/figures
	$(BIN)/python -m leaderboard.figures results/figures docs --dataset synthetic \
	    --methods vae kl_annealing --labels "plain VAE" "KL annealing" --mark 1000 "KL at full weight"
