"""What a person reads of a training: figures and the model card.

It reads run folders and must not change them."""
