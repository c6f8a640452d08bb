"""One training: options, plan, set-up, step, schedule, validation, agenda, measuring, and the estimate of a dry run.

The loop itself is in pretrain.py. This room must not know how data were prepared or how a model is exported."""
