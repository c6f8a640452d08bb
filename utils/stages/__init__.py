"""The stages of a recipe: whether they could be run, which are complete, and each run as a command of its own.

It knows every command's options and where its result lies, and must not know how a stage does its work: that is the
command's, which is started as a person would start it.
"""
