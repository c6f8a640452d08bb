"""Books: acquired from Project Gutenberg, cleaned, cut into chunks, listed with where each comes from, and described
for the Hub.

It knows plain text and the habits of its editions. It must not know tokens, models or recipes.
"""
