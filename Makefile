PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/installed
# Threads that spin while they wait slow a small machine down many times as soon as something else runs on it.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: quickstart test debian-packages llama.cpp lint slurm-dev soak clean

# One environment for both commands: the chain's last step loads its result with transformers, as the tests do.
$(STAMP): requirements.txt requirements-dev.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements-dev.txt
	$(VENV)/bin/python -m pip check
	touch $@

quickstart: $(STAMP)
	$(VENV)/bin/python utils/recipes.py run configs/quickstart/foundation.yaml
	$(VENV)/bin/python utils/recipes.py run configs/quickstart/lora.yaml

# Downloads leave the cores to llama.cpp's compiler; the tests, some of which have time limits, begin when all is there.
test:
	$(MAKE) --jobs=3 debian-packages llama.cpp lint
	$(VENV)/bin/python tests/run_groups.py

debian-packages:
	tests/slurm/install.sh
	tests/install_debian.sh go golang-go "the tests that render Ollama's templates (tests/export)"
	tests/install_debian.sh tmux tmux "the tests of the chat in a terminal (tests/chat)"

llama.cpp: $(STAMP)
	$(VENV)/bin/python utils/install_llama_cpp.py || echo "the tests of GGUF files are left out: see above"

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# Two Slurm nodes on this machine, to try sbatch on; stays until Ctrl-C.
slurm-dev: $(STAMP)
	tests/slurm/install.sh
	$(VENV)/bin/python -m tests.slurm.cluster

# About an hour of interruptions and kills; writes what it measures into benchmarks/results.csv.
soak: $(STAMP)
	tests/slurm/install.sh
	$(VENV)/bin/python benchmarks/soak.py

clean:
	rm -rf $(VENV) out .llama.cpp
