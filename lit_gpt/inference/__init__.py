"""A model that answers: the cache of keys and values, sampling, and the stream of text.

It must not know where the model came from: adapters are merged, and run folders resolved, before."""
