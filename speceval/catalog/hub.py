"""The model hub: is it reachable, and a checkpoint's config.json from it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from speceval.errors import UserError
from speceval.foreign import json_object

from .config import Config

_TIMEOUT_SECONDS = 5.0


@lru_cache(maxsize=1)
def online() -> bool:
    """True if the hub answers within five seconds; asked once per process.

    One short question instead of the client's own retries, which take minutes on a machine without network.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_SECONDS)
    except Exception:  # whatever the transport raises means the same: no hub
        return False
    return True


def hub_config(model: str, revision: str | None) -> tuple[Config, str]:
    """config.json of a hub checkpoint and the commit it is from; from the local cache when offline.

    Downloads nothing but config.json. Raises UserError: offline and not cached, no such or no access to the repository.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = hf_hub_download(model, "config.json", revision=revision, local_files_only=not online())
    except LocalEntryNotFoundError:
        raise UserError(
            f"'{model}': the model hub cannot be reached and the checkpoint is not in its cache: "
            "give a local directory or go online"
        ) from None
    except GatedRepoError:
        raise UserError(f"'{model}': gated on the hub: accept its licence there and log in (hf auth login)") from None
    except RepositoryNotFoundError:
        raise UserError(f"'{model}': no such model on the hub, or a private one: check the name or log in") from None
    except RevisionNotFoundError:
        raise UserError(f"'{model}': no revision '{revision}' on the hub") from None
    except EntryNotFoundError:
        raise UserError(f"'{model}': has no config.json on the hub, so it is not a checkpoint vLLM loads") from None
    config = parse_config(Path(path), f"config.json of {model}")
    return config, Path(path).parent.name


def cached(model: str, revision: str | None) -> Path:
    """Where the hub's cache keeps a snapshot of `model`; the directory need not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}" / "snapshots" / (revision or "main")


def local_config(directory: Path) -> Config:
    """config.json of a checkpoint directory. Raises UserError if there is none or it is not a JSON object."""
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: no config.json in it, so it is not a checkpoint directory")
    return parse_config(path, str(path))


def parse_config(path: Path, shown: str) -> Config:
    """The JSON object in `path`. Raises UserError, naming it `shown`."""
    return Config(json_object(path, shown), shown)
