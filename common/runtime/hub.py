"""Reaching the Hugging Face hub, or finding out at once that it cannot be reached."""


def go_offline_if_unreachable() -> bool:
    """True when the hub answers; otherwise switch this process to the local caches, without minutes of retries.

    Compute nodes often have no network. The hub's libraries then retry every file several times before they look
    into their cache; one short question up front spares that.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        HfApi().dataset_info("nyu-mll/glue", timeout=10)
        return True
    except HfHubHTTPError:  # an answer, if not a kind one
        return True
    except Exception:  # no name, no route, no time, a proxy's refusal: the caches are what remains
        constants.HF_HUB_OFFLINE = True
        import datasets

        datasets.config.HF_HUB_OFFLINE = True
        return False
