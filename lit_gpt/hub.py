"""The Hugging Face Hub's failures as one line each, and the upload of a folder.

The token is the Hub's own: of `hf auth login`, or HF_TOKEN. None is taken on a command line or written to a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lit_gpt.command import UserError


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turns what goes wrong with the Hub into errors that say what to do.

    Raises:
        UserError: if the repository or revision does not exist, or may not be read or written with this token.
        OSError: if the Hub cannot be reached.
    """
    import httpx
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        page = f"https://huggingface.co/{repo_id}"
        raise UserError(
            f"{repo_id} is gated: ask for access on {page}, then run hf auth login or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo_id} has no such revision") from None
    except errors.RepositoryNotFoundError:
        hint = "if it is private, run hf auth login or set HF_TOKEN"
        raise UserError(f"{repo_id} was not found on the Hugging Face Hub; check the name; {hint}") from None
    except (errors.HFValidationError, errors.LocalTokenNotFoundError) as e:
        raise UserError(str(e)) from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, httpx.TransportError) as e:
        raise OSError(f"the Hugging Face Hub cannot be reached ({e}); on a cluster, download on a login node") from None
    except errors.HfHubHTTPError as e:
        status = e.response.status_code if e.response is not None else None
        if status in (401, 403):
            raise UserError(
                f"the Hub refuses this for {repo_id}: run hf auth login with a token that may do it"
            ) from None
        raise OSError(f"the Hub failed on {repo_id}: {e}") from None


def upload(folder: Path, repo_id: str, private: bool, ignore: Sequence[str] = (), message: str | None = None) -> str:
    """Uploads the files of `folder` but those that match `ignore`, in one commit; returns its address.

    `private` is for a repository that does not exist yet.
    """
    from huggingface_hub import HfApi

    with hub_errors(repo_id):
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, ignore_patterns=list(ignore), commit_message=message
        )
        return commit.commit_url
