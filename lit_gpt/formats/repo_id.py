"""Names of the Hub's repositories, checked with a command's options: without a name, the Hub's client stays away."""

import re


def check_repo_id(repo_id: str, what: str) -> list[str]:
    """The problems with `repo_id`, which the user knows as `what`; none if it can be a repository's name."""
    # they take 0.2 s, which --help does not need
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    parts = repo_id.split("/")
    plain = len(parts) == 2 and all(re.fullmatch(r"[A-Za-z0-9_.-]+", part) for part in parts)
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        plain = False
    if plain:
        return []
    return [f"{what} must be ORG/NAME of letters, digits, '-', '_' and '.', not {repo_id!r}"]
