"""The processes of a run: who starts them, how they agree, how a hanging one is found and a signal heard.

It must not know what they compute."""
