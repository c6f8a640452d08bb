"""One training: the parts of the loop that pretrain.py shows.

options.py, plan.py (what the run will do, checked before a process is started) and set_up.py (with placement.py and
optimizer.py) come before the loop. schedule.py, step.py, validation.py and agenda.py are called by it. profiler.py,
metrics.py and loggers.py measure it and write it down. A dry run (dry_run.py) works its needs out from workload.py,
step_trace.py and estimate.py. This room must not know how data were prepared or how a model is exported."""
