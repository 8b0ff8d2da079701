"""Whether the Hugging Face hub can be reached."""


def go_offline_if_unreachable() -> bool:
    """True if the hub answers; otherwise False, and this process uses the local caches only.

    Compute nodes often have no network. The hub's libraries then retry every file several times, for minutes, before
    they use their cache; one short request at the start avoids that.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        HfApi().dataset_info("nyu-mll/glue", timeout=10)
        return True
    except HfHubHTTPError:  # an error status is an answer too
        return True
    except Exception:  # no DNS, no route, a timeout, a proxy that refuses: only the caches are left
        constants.HF_HUB_OFFLINE = True
        import datasets

        datasets.config.HF_HUB_OFFLINE = True
        return False
