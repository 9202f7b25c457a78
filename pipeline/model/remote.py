"""Weights of a model on the hub, measured without a download: from config.json and the safetensors headers."""

from collections import Counter
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.model.files import INDEX, files_in_index
from pipeline.model.hub import hub_troubles, insist_on_model
from pipeline.model.shape import Shape, shape_of
from pipeline.model.weights import UnknownSizeError, bytes_by_dtype, served_bytes

SINGLE = "model.safetensors"
HEADERS = "safetensors headers on the hub"


def remote_weights(repo: str, revision: str, dtype: str, timeout_s: float) -> tuple[Shape, int, str]:
    """Return (shape, bytes of the weights on the device, source of that size); raise ModelError if it cannot be read."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, NotASafetensorsRepoError, SafetensorsParsingError

    api = HfApi()
    stored: Counter[str] = Counter()
    with hub_troubles(repo, revision, Path(repo)):
        config = small_file(repo, revision, "config.json", timeout_s)
        if config is None:
            insist_on_model(repo, api.model_info(repo, revision=revision, timeout=timeout_s))
            raise ModelError(f"{repo} has no config.json", "name a repository with a Hugging Face model in it")
        shape = shape_of(config)
        index = small_file(repo, revision, INDEX, timeout_s)
        names = [SINGLE] if index is None else files_in_index(index)
        try:
            for name in names:
                header = api.parse_safetensors_file_metadata(repo, name, revision=revision, timeout=timeout_s)
                tensors = ((tensor, info.dtype, info.data_offsets) for tensor, info in header.tensors.items())
                stored.update(bytes_by_dtype(tensors, shape))
        except (EntryNotFoundError, NotASafetensorsRepoError, SafetensorsParsingError) as error:
            insist_on_model(repo, api.model_info(repo, revision=revision, timeout=timeout_s))
            reason, hint = f"{repo} has no safetensors weights that can be read", "name a repository with safetensors weights"
            raise UnknownSizeError(reason, hint, shape) from error
    return shape, served_bytes(stored, shape.served_dtype(dtype)), HEADERS


def small_file(repo: str, revision: str, name: str, timeout_s: float) -> bytes | None:
    """Return a file's content without storing it, or None if the repository has no such file."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import get_session, hf_raise_for_status

    answer = get_session().get(hf_hub_url(repo, name, revision=revision), headers=build_hf_headers(), timeout=timeout_s)
    try:
        hf_raise_for_status(answer)
    except EntryNotFoundError:
        return None
    return bytes(answer.content)
