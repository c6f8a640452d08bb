"""Files and folders that are whole under their final name: atomic writes, staged folders, the folder lock.

It knows bytes and paths, and must not know what they mean."""
