"""The processes of a run: who starts them, how they agree, how a hanging one is found and how a signal is heard.

What only reads the environment (ranks.py, slurm.py, stop_request.py) imports nothing heavy, the rest imports torch.
Nothing here knows what the processes compute."""
