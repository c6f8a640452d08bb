"""What a person reads of a training: curves, figures and the model card.

It reads run folders and published folders and must not change a run. It must not know how a model is trained or
converted: the numbers it shows are those on disk."""
