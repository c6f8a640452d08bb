"""What a person reads of a training: curves, figures and the model card. The room reads run folders and must not change
them. It must not know how a model is trained or converted: the numbers it shows are those on disk."""
