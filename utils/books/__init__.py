"""Books: acquired from Project Gutenberg, cleaned, cut into chunks, and listed with where each comes from.

It knows plain text and the habits of its editions. It must not know tokens, models or recipes.
"""
